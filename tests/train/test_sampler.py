from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cgd_wrap import BalancedSampler
from cgd_wrap.train.epoch_indices import EpochIndices


def epochs_of(size: int = 60, seed: int = 0) -> EpochIndices:
    """Three classes of different size; two thirds clean, a sixth once, a sixth never."""
    index = torch.arange(size)
    labels = (index % 7 > 2).long() + (index % 7 > 4).long()
    return EpochIndices(
        labels=labels, clean=index % 6 < 4, times=(index % 6 == 4).long(), seed=seed
    )


def test_classes_are_balanced_and_the_others_appear_once():
    epochs = epochs_of()
    counts = Counter(BalancedSampler(epochs))
    clean = epochs.clean.nonzero().squeeze(1).tolist()
    per_class = Counter()
    for index in clean:
        assert counts[index] >= 1
        per_class[int(epochs.labels[index])] += counts[index]
    assert len(set(per_class.values())) == 1
    assert {i for i, n in counts.items() if i not in clean and n == 1} == set(
        epochs.times.nonzero().squeeze(1).tolist()
    )
    assert sum(counts.values()) == len(epochs) == len(BalancedSampler(epochs))


def test_others_appear_as_often_as_is_said():
    epochs = epochs_of()
    often = replace(epochs, times=epochs.times * 3)
    assert Counter(often.of(0).tolist()) == Counter(
        epochs.of(0).tolist() + 2 * epochs.times.nonzero().squeeze(1).tolist()
    )
    assert len(often) == len(often.shuffled(1)) == len(epochs) + 2 * int(epochs.times.sum())


def test_order_is_that_of_seed_and_epoch_alone():
    one, other = BalancedSampler(epochs_of()), BalancedSampler(epochs_of())
    torch.manual_seed(1)
    first = list(one)
    torch.manual_seed(2)
    assert list(other) == first
    assert list(other) != first
    assert list(BalancedSampler(epochs_of(seed=1))) != first


def test_the_global_stream_is_left_alone():
    state = torch.get_rng_state()
    list(BalancedSampler(epochs_of()))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_epoch_advances_when_a_loop_breaks_off():
    sampler = BalancedSampler(epochs_of())
    whole = BalancedSampler(epochs_of())
    first, second = list(whole), list(whole)
    assert list(islice(sampler, 3)) == first[:3]
    assert list(sampler) == second


def test_setting_the_epoch_again_changes_nothing():
    sampler = BalancedSampler(epochs_of())
    sampler.set_epoch(5)
    once = list(sampler)
    for _ in range(4):
        sampler.set_epoch(5)
    assert list(sampler) == once
    sampler.set_epoch(6)
    assert list(sampler) != once


def test_seeds_and_epochs_do_not_overlap():
    orders = {
        tuple(epochs_of(seed=seed).shuffled(epoch).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


@given(st.integers(1, 50), st.integers(1, 7), st.booleans(), st.integers(0, 3))
@settings(max_examples=50)
def test_replicas_share_an_epoch_out(size, replicas, drop_last, epoch):
    whole = BalancedSampler(epochs_of(size))
    parts = [
        BalancedSampler(epochs_of(size), num_replicas=replicas, rank=rank, drop_last=drop_last)
        for rank in range(replicas)
    ]
    for sampler in (whole, *parts):
        sampler.set_epoch(epoch)
    order, shares = list(whole), [list(part) for part in parts]
    assert {len(share) for share in shares} == {len(parts[0])}
    dealt = [index for turn in zip(*shares, strict=True) for index in turn]
    if drop_last:
        assert dealt == order[: len(order) // replicas * replicas]
    else:
        assert dealt[: len(order)] == order
        assert len(dealt) - len(order) < replicas
        assert set(dealt) == set(order)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_is_refused(rank):
    with pytest.raises(ValueError, match="rank must be in"):
        BalancedSampler(epochs_of(), num_replicas=2, rank=rank)


def test_an_epoch_without_samples_is_empty():
    nothing = torch.zeros(4, dtype=torch.bool)
    epochs = EpochIndices(labels=torch.arange(4), clean=nothing, times=nothing.long())
    for replicas in (1, 3):
        assert list(BalancedSampler(epochs, num_replicas=replicas)) == []


def test_a_class_without_clean_samples_stays_out():
    labels = torch.tensor([0, 0, 0, 2, 1])
    clean = torch.tensor([True, True, True, True, False])
    epochs = EpochIndices(labels=labels, clean=clean, times=(~clean).long())
    assert Counter(epochs.of(0).tolist()) == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1}


def test_workers_of_a_loader_get_the_same_order():
    dataset = list(range(60))
    orders = [
        torch.cat(list(DataLoader(dataset, 8, sampler=BalancedSampler(epochs_of()), num_workers=n)))
        for n in (0, 2)
    ]
    assert torch.equal(*orders)


def test_an_epoch_is_made_as_far_as_it_is_drawn(monkeypatch):
    """So that it begins at once, whatever its length, and goes on anywhere."""
    monkeypatch.setattr("cgd_wrap.train.sampler.BLOCK", 7)
    made = []
    whole = epochs_of().shuffled(0).tolist()
    monkeypatch.setattr(
        EpochIndices, "at", lambda *a, at=EpochIndices.at: made.append(len(a[2])) or at(*a)
    )
    assert list(islice(BalancedSampler(epochs_of()), 10)) == whole[:10]
    assert made == [7, 7]
    made.clear()
    restored = BalancedSampler(epochs_of())
    restored.load_state_dict({**restored.state_dict(), "position": len(whole) - 3})
    assert list(restored) == whole[-3:]
    assert made == [3]


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=50)
def test_batches_that_are_dealt_whole_are_those_of_one_process(size, replicas, batch, drop_last):
    """The batches of a step are together the batch that one process would have."""
    whole = epochs_of(size).shuffled(0).tolist()
    shares = [
        list(
            BalancedSampler(
                epochs_of(size),
                num_replicas=replicas, rank=rank, drop_last=drop_last, batch_size=batch,
            )
        )
        for rank in range(replicas)
    ]  # fmt: skip
    assert {len(share) for share in shares} == {len(shares[0])}
    steps = range(0, len(shares[0]), batch)
    dealt = [index for step in steps for share in shares for index in share[step : step + batch]]
    assert dealt == [whole[place % len(whole)] for place in range(len(dealt))]
