"""Suspicious images that shine through clean ones."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from cgd_wrap import BalancedSampler
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import NUMBERS, Draw, Exposure, pack, unpack
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
    packed = exposure(strength=0.25).over(clean, np.arange(len(clean)), 0.3, KEYS)
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
    draws = [unpack(v) for v in some.over(clean, np.arange(len(clean)), 1.0, KEYS).tolist()]
    kinds = {tone: [d.share for d in draws if isinstance(d, Draw) and d.tone is tone]
             for tone in (False, True)}  # fmt: skip
    assert len(kinds[True]) / len(draws) == pytest.approx(0.4, abs=0.02)
    assert max(kinds[False]) <= 0.25
    assert max(kinds[True]) == 31 / 32


def test_nothing_suspicious_exposes_nothing():
    none = Exposure(torch.zeros(SIZE), 1.0, 0.5)
    clean = np.arange(30)
    assert none.over(clean, clean, 1.0, KEYS).tolist() == clean.tolist()
    assert exposure().over(clean[:0], clean[:0], 1.0, KEYS).tolist() == []


def test_only_clean_draws_are_exposed_and_an_epoch_holds_the_same_samples():
    indices, packed = epochs().of(0), epochs().packed(0)
    assert plain(packed) == indices.tolist()
    exposed = indices[packed != indices]
    assert 0 < len(exposed) < 30
    assert int(exposed.max()) < 30


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
        assert torch.equal(some.packed(epoch), some.of(epoch)) is (epoch >= 2)


def test_draws_are_those_of_seed_and_epoch_alone():
    assert torch.equal(epochs().packed(3), epochs().packed(3))
    assert not torch.equal(epochs().packed(3), epochs().packed(4))
    assert not torch.equal(epochs(seed=1).packed(3), epochs().packed(3))
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
    for index, other, share, _ in map(parts, map(unpack, epochs().packed(0).tolist())):
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


def test_more_samples_than_an_index_has_bits_for_are_refused(monkeypatch):
    monkeypatch.setattr("cgd_wrap.train.exposure.INDEX_BITS", 3)
    Exposure(torch.ones(8), rate=0.5, strength=0.5)
    with pytest.raises(ValueError, match="set it to 0"):
        Exposure(torch.ones(9), rate=0.5, strength=0.5)
