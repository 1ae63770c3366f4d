"""Suspicious images that shine through clean ones."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import reads_of
from torch.utils.data import DataLoader, TensorDataset

from cgd_wrap import BalancedSampler
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import NUMBERS, Draw, Exposure, Near, pack, unpack
from cgd_wrap.train.keyed import keys
from cgd_wrap.train.tags import TAG

SIZE = 40
LEVEL = st.integers(1, 31)
INDEX = st.integers(0, (1 << 28) - 1)
KEYS = keys(0, count=NUMBERS)


def exposure(rate: float = 1.0, strength: float = 0.5) -> Exposure:
    """Samples 30 to 39 are suspicious; the later, the more."""
    return Exposure((torch.arange(SIZE) - 30).clamp(min=0).float(), rate, strength)


def epochs(seed: int = 0, rate: float = 0.5) -> EpochIndices:
    index = torch.arange(SIZE)
    return EpochIndices(
        labels=index % 3,
        clean=index < 30,
        times=(index >= 30).long(),
        seed=seed,
        exposure=exposure(rate),
    )


def guarded() -> GuardedDataset:
    """Image i is filled with i, so that a blend shows what went in."""
    images = torch.arange(SIZE).float()[:, None, None, None].expand(-1, 3, 4, 4)
    return GuardedDataset(TensorDataset(images, torch.arange(SIZE) % 3), SampleLayout(0, 1))


def alone(count: int) -> Near:
    """Of draws that have no suspicious draw in their windows, each of which is far from others."""
    none = np.empty((count, 0))
    places = np.arange(count)
    return Near(none.astype(np.int64), none, row=places, window=4 * places, heaviest=9.0)


def parts(draw: int) -> tuple[int, int | None, float, bool]:
    share, tone = getattr(draw, "share", 0.0), getattr(draw, "tone", False)
    return int(draw), getattr(draw, "other", None), share, tone


def plain(packed: torch.Tensor | np.ndarray) -> list[int]:
    return [int(unpack(value)) for value in packed.tolist()]


@given(INDEX, INDEX, LEVEL, st.booleans())
def test_a_packed_draw_is_unpacked_to_what_it_was_made_of(index, other, level, tone):
    [packed] = pack(*(np.array([value]) for value in (index, other, level, tone)))
    assert int(packed) > 0
    draw = unpack(int(packed))
    for one in (draw, pickle.loads(pickle.dumps(draw)), copy.deepcopy(draw)):
        assert parts(one) == (index, other, level / 32, tone)
        assert one == index


@given(st.integers(-5, 1 << 40))
def test_a_plain_index_stays(index):
    assert parts(unpack(index)) == (index, None, 0.0, False)


def test_the_rate_the_strength_and_the_weights_are_kept():
    clean = np.tile(np.arange(30), 400)
    slots = np.arange(len(clean))
    packed = exposure(strength=0.25).over(clean, slots, alone(len(clean)), 0.3, KEYS)
    assert plain(packed) == clean.tolist()
    draws = [unpack(value) for value in packed.tolist()]
    others = Counter(draw.other for draw in draws if isinstance(draw, Draw))
    shares = torch.tensor([draw.share for draw in draws if isinstance(draw, Draw)])
    # A share that rounds to no 32nd leaves its draw alone: 1 in 16 here.
    assert sum(others.values()) / len(clean) == pytest.approx(0.3 * 15 / 16, abs=0.015)
    assert set(others) == set(range(31, 40))
    assert others[39] / others[33] == pytest.approx(9 / 3, rel=0.25)
    assert shares.min() > 0
    assert shares.max() <= 0.25
    assert shares.mean() == pytest.approx(0.125 * 16 / 15, abs=0.005)


def test_some_exposures_pass_on_the_tone_alone_and_up_to_all_of_it():
    clean = np.tile(np.arange(30), 400)
    some = replace(exposure(strength=0.25), tone=0.4)
    packed = some.over(clean, np.arange(len(clean)), alone(len(clean)), 1.0, KEYS)
    draws = [unpack(value) for value in packed.tolist()]
    kinds = {tone: [d.share for d in draws if isinstance(d, Draw) and d.tone is tone]
             for tone in (False, True)}  # fmt: skip
    assert len(kinds[True]) / len(draws) == pytest.approx(0.4, abs=0.02)
    assert max(kinds[False]) <= 0.25
    assert max(kinds[True]) == 31 / 32


def test_nothing_suspicious_exposes_nothing():
    none = Exposure(torch.zeros(SIZE), 1.0, 0.5)
    clean = np.arange(30)
    assert none.over(clean, clean, alone(30), 1.0, KEYS).tolist() == clean.tolist()
    assert exposure().over(clean[:0], clean[:0], alone(0), 1.0, KEYS).tolist() == []


def spread_out(size: int = 4000, **changes: Any) -> EpochIndices:
    """One sample in ten is suspicious; of these every other weighs thrice, and every fifth is drawn
    twice."""
    index = torch.arange(size)
    suspicious = index % 10 == 0
    weight = suspicious * (1.0 + 2.0 * (index % 20 == 0))
    times = suspicious * (1 + (index % 50 == 0).long())
    return EpochIndices(
        labels=index % 3, clean=~suspicious, times=times, exposure=Exposure(weight, 0.7, 0.9),
        **changes,
    )  # fmt: skip


def test_each_suspicious_sample_is_blended_in_as_often_as_its_weight_says():
    """However its neighbours in the order are weighed, and however often it is drawn itself."""
    epochs = spread_out(200)
    weight = epochs.exposure.weight
    seen = torch.zeros(200)
    for epoch in range(150):
        for draw in map(unpack, epochs.shuffled(epoch).tolist()):
            if isinstance(draw, Draw):
                seen[draw.other] += 1
    share, wanted = seen / seen.sum(), weight / weight.sum()
    assert share[wanted > 0].numpy() == pytest.approx(wanted[wanted > 0].numpy(), rel=0.2)
    for some in (weight == 3, epochs.times == 2):
        assert float(share[some].sum()) == pytest.approx(float(wanted[some].sum()), rel=0.03)


@pytest.mark.parametrize("size", [32, 128])
def test_a_batch_mostly_holds_what_is_blended_into_its_samples(size):
    epochs = spread_out()
    reads = reads_of(epochs, 1, batch_size=size).sum()
    assert reads <= len(epochs) * 1.04
    draws = [unpack(packed) for packed in epochs.shuffled(0).tolist()]
    others = {draw.other for draw in draws if isinstance(draw, Draw)}
    assert len(others) > 0.95 * 400  # and yet nearly all suspicious samples take part


def test_only_clean_draws_are_exposed_and_an_epoch_holds_the_same_samples():
    packed = epochs().shuffled(0)
    assert sorted(plain(packed)) == sorted(epochs().of(0).tolist())
    exposed = [draw for draw in map(unpack, packed.tolist()) if isinstance(draw, Draw)]
    assert 0 < len(exposed) < 30
    assert max(exposed) < 30


@pytest.mark.parametrize(
    ("early", "run", "rates"),
    [(None, None, [0.8] * 5), (None, 5, [0.8] * 3 + [0.2] * 2), (2, 5, [0.8] * 2 + [0.2] * 3),
     (9, 5, [0.8] * 5)],
)  # fmt: skip
def test_later_epochs_have_fewer_exposures(early, run, rates):
    some = Exposure(torch.ones(SIZE), 0.8, 0.5, epochs=early, late=0.25)
    assert [some.rate_in(epoch, run) for epoch in range(5)] == pytest.approx(rates)


def test_the_last_epochs_can_be_without():
    some = replace(epochs(), exposure=replace(exposure(), epochs=2))
    for epoch in range(4):
        shown = [isinstance(unpack(value), Draw) for value in some.shuffled(epoch).tolist()]
        assert any(shown) is (epoch < 2)


def test_draws_are_those_of_seed_and_epoch_alone():
    assert torch.equal(epochs().shuffled(3), epochs().shuffled(3))
    assert not torch.equal(epochs().shuffled(3), epochs().shuffled(4))
    assert not torch.equal(epochs(seed=1).shuffled(3), epochs().shuffled(3))
    state = torch.get_rng_state()
    list(BalancedSampler(epochs()))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_guarded_dataset_blends_the_images_and_keeps_the_label():
    dataset = guarded()
    draw = Draw(6, 38, 0.25)
    for image, target in (dataset[draw], dataset.__getitems__([2, draw])[1]):
        assert torch.equal(image, torch.full((3, 4, 4), 0.75 * 6 + 0.25 * 38))
        assert int(target) == TAG + 6
    with pytest.raises(IndexError):
        dataset[SIZE]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_serve_the_blends_that_the_epoch_decided(workers):
    loaders = (
        DataLoader(guarded(), batch_size=8, sampler=BalancedSampler(epochs()), num_workers=workers),
        DataLoader(BalancedView(guarded(), epochs()), batch_size=8, num_workers=workers),
    )
    expected = Counter()
    for index, other, share, _ in map(parts, map(unpack, epochs().shuffled(0).tolist())):
        value = index if other is None else (1 - share) * index + share * other
        expected[index, round(value, 3)] += 1
    for loader in loaders:
        served = Counter()
        for images, targets in loader:
            pairs = zip(images[:, 0, 0, 0].tolist(), targets.tolist(), strict=True)
            served.update((target - TAG, round(value, 3)) for value, target in pairs)
        assert served == expected


def test_the_users_augmentation_draws_as_if_nothing_else_had_been_read():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.rand(()), label

    base = guarded().base
    dataset = GuardedDataset(Noisy(*base.tensors), SampleLayout(0, 1))
    draw = Draw(6, 38, 0.25)
    torch.manual_seed(0)
    plain = [dataset[index][0] for index in (6, 7)]
    torch.manual_seed(0)
    exposed = [dataset[index][0] for index in (draw, 7)]
    assert not torch.equal(plain[0], exposed[0])
    assert torch.equal(plain[1], exposed[1])


class Read(TensorDataset):
    """Notes what is read, and in how many calls; reads whole batches."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__(*tensors)
        self.calls: list[list[int]] = []

    def __getitems__(self, indices):
        self.calls.append(list(indices))
        return [self[index] for index in indices]


def test_what_a_batch_holds_is_not_read_again_and_what_it_lacks_is_read_once():
    dataset = GuardedDataset(Read(*guarded().base.tensors), SampleLayout(0, 1))
    draws = [Draw(6, 38, 0.5), 38, Draw(7, 39, 0.5), Draw(8, 39, 0.25), Draw(9, 38, 0.5, True)]
    images = [float(image.mean()) for image, _ in dataset.__getitems__(draws)]
    assert dataset.base.calls == [[6, 38, 7, 8, 9], [39]]
    assert images == pytest.approx([22, 38, 23, 15.75, 23.5])
    alone = [float(dataset[draw][0].mean()) for draw in draws]
    assert images == alone


def test_the_unblended_image_is_blended_in():
    chain = [Draw(6, 7, 0.5), Draw(7, 6, 0.5)]
    assert [float(image.mean()) for image, _ in guarded().__getitems__(chain)] == [6.5, 6.5]
    shared = guarded()
    before = shared.base.tensors[0].clone()
    shared.__getitems__([Draw(6, 7, 0.5, True), Draw(7, 38, 0.5)])
    assert torch.equal(shared.base.tensors[0], before)


def test_more_samples_than_an_index_has_bits_for_are_refused(monkeypatch):
    monkeypatch.setattr("cgd_wrap.train.exposure.INDEX_BITS", 3)
    Exposure(torch.ones(8), rate=0.5, strength=0.5)
    with pytest.raises(ValueError, match="set it to 0"):
        Exposure(torch.ones(9), rate=0.5, strength=0.5)
