"""Where a sampler is in a training: what a host says, what a state said, and who wins."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from cgd_wrap import BalancedSampler
from cgd_wrap.errors import CacheMismatchError
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import Exposure
from cgd_wrap.train.sampler import ShardedSampler


def epochs_of(size: int = 60, *, rate: float = 0.5, **changes) -> EpochIndices:
    """Two classes; two thirds clean, some of these exposed, a third once."""
    index = torch.arange(size)
    made = EpochIndices(
        labels=index % 2, clean=index % 3 > 0, times=(index % 3 == 0).long(),
        exposure=Exposure(torch.ones(size), rate=rate, strength=0.5, late=0.1), run=8,
    )  # fmt: skip
    return replace(made, **changes)


def drawn(indices) -> list[bytes]:
    """Indices with the exposures that they carry."""
    return [pickle.dumps(index) for index in indices]


def passed_through_json(state):
    return json.loads(json.dumps(state))


@given(st.integers(0, 60), st.integers(0, 4), st.integers(1, 3), st.booleans())
@settings(max_examples=40)
def test_a_restored_sampler_serves_what_was_left_and_then_the_next_epochs(
    position, epoch, replicas, set_by_host
):
    """FAULTS row 60, for any position, exposures and run included."""

    def made(**changes):
        return BalancedSampler(epochs_of(**changes), num_replicas=replicas, rank=replicas - 1)

    whole, sampler = made(), made()
    position = min(position, len(whole))
    for _ in range(epoch):
        list(whole)
        list(sampler)
    expected = [drawn(whole) for _ in range(3)]
    at_work = iter(sampler)
    list(islice(at_work, position))
    state = passed_through_json(sampler.state_dict())
    assert (state["epoch"], state["position"]) == (epoch, position if position else 0)
    restored = made(seed=9, run=None)
    restored.load_state_dict(state)
    found = []
    for number in range(3):
        if set_by_host:
            restored.set_epoch(epoch + number)
        found.append(drawn(restored))
    assert found == [expected[0][position:], *expected[1:]]


def test_an_epoch_that_is_over_leads_to_the_next():
    sampler, whole = BalancedSampler(epochs_of()), BalancedSampler(epochs_of())
    list(sampler)
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    list(whole)
    restored = BalancedSampler(epochs_of())
    restored.load_state_dict(state)
    assert drawn(restored) == drawn(whole)


def test_another_epoch_set_by_the_host_drops_the_restored_position():
    sampler = BalancedSampler(epochs_of())
    list(islice(sampler, 7))
    state, other = sampler.state_dict(), BalancedSampler(epochs_of())
    other.load_state_dict(state)
    other.set_epoch(3)
    sampler.set_epoch(3)
    assert drawn(other) == drawn(sampler)
    assert len(drawn(other)) == len(other)


def test_a_host_that_counts_from_its_restart_goes_on_with_the_saved_epochs():
    """Accelerate sets its own number at the start of a pass, before torchdata restores ours."""
    whole = BalancedSampler(epochs_of())
    whole.set_epoch(4)
    list(islice(whole, 5))
    state, restored = whole.state_dict(), BalancedSampler(epochs_of())
    restored.set_epoch(0)
    restored.load_state_dict(state)
    rest = list(restored)
    assert len(rest) == len(whole) - 5
    restored.set_epoch(1)
    assert restored.epoch == 5


def test_a_host_that_counts_on_is_believed_after_an_earlier_run():
    """A second run in the same process: the epoch of the first one says nothing."""
    sampler = BalancedSampler(epochs_of())
    sampler.set_epoch(2)
    list(sampler)
    saved = BalancedSampler(epochs_of())
    saved.set_epoch(6)
    list(islice(saved, 4))
    sampler.load_state_dict(saved.state_dict())
    sampler.set_epoch(6)
    assert len(list(sampler)) == len(sampler) - 4
    sampler.set_epoch(7)
    assert sampler.epoch == 7


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (lambda: BalancedSampler(epochs_of(120)), "samples: 60 -> 120"),
        (lambda: BalancedSampler(epochs_of(), num_replicas=2), "num_replicas: 1 -> 2"),
        (lambda: BalancedSampler(epochs_of(rate=0.1)), "content: "),
        (lambda: BalancedSampler(epochs_of(clean=torch.arange(60) % 3 > 1)), "length: 60 -> 40"),
        (lambda: BalancedSampler(epochs_of(labels=torch.arange(60) // 2 % 2)), "content: "),
    ],
)
def test_a_state_of_other_samples_is_refused_by_name(other, field):
    """FAULTS row 60: never the samples of another data set or split."""
    sampler = other()
    before = sampler.state_dict()
    with pytest.raises(CacheMismatchError, match=rf"(?s)guard's samples was made.*{field}"):
        sampler.load_state_dict(BalancedSampler(epochs_of()).state_dict())
    assert sampler.state_dict() == before


def test_a_state_within_an_epoch_that_was_dealt_in_other_batches_is_refused_by_name():
    def made(batch_size: int, replicas: int = 2) -> BalancedSampler:
        return BalancedSampler(epochs_of(), num_replicas=replicas, batch_size=batch_size)

    saved = made(4)
    made(8).load_state_dict(saved.state_dict())  # no epoch was begun
    list(islice(iter(saved), 8))
    with pytest.raises(CacheMismatchError, match="batch_size: 4 -> 8"):
        made(8).load_state_dict(saved.state_dict())
    made(4).load_state_dict(saved.state_dict())
    alone = made(4, replicas=1)
    list(islice(iter(alone), 8))
    made(8, replicas=1).load_state_dict(alone.state_dict())  # which one process isn't dealt


@pytest.mark.parametrize("state", [{}, {"epoch": 3, "yielded": 17}])
def test_a_state_of_another_sampler_is_refused(state):
    with pytest.raises(CacheMismatchError, match="samples: None -> 60"):
        BalancedSampler(epochs_of()).load_state_dict(state)


def test_a_position_can_be_set_to_what_was_trained_on():
    """Workers of a plain loader are ahead of the training."""
    sampler = BalancedSampler(epochs_of())
    loader = DataLoader(list(range(60)), 4, sampler=sampler, num_workers=2)
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == 3:
            state = sampler.state_dict()
            break
    assert state["position"] > 3 * 4
    restored = BalancedSampler(epochs_of())
    restored.load_state_dict(state | {"position": 3 * 4})
    served = torch.cat([*batches, *DataLoader(list(range(60)), 4, sampler=restored)])
    assert served.tolist() == [int(index) for index in BalancedSampler(epochs_of())]


def test_the_epoch_of_a_replaced_sampler_is_followed():
    """Scripts go on calling ``set_epoch`` on the sampler that they made themselves."""
    old = DistributedSampler(list(range(60)), num_replicas=2, rank=1)
    old.set_epoch(5)
    sampler = ShardedSampler(epochs_of(), num_replicas=2, rank=1, replaced=old)
    assert sampler.epoch == 5
    list(sampler)
    assert sampler.state_dict()["epoch"] == 6
    old.set_epoch(9)
    expected = ShardedSampler(epochs_of(), num_replicas=2, rank=1)
    expected.set_epoch(9)
    assert drawn(sampler) == drawn(expected)
    sampler.set_epoch(3)  # the guard's own is set later: it counts
    expected.set_epoch(3)
    assert drawn(sampler) == drawn(expected)


def test_a_state_of_the_former_orders_is_refused_by_name():
    """Its position means other samples than the same position does now."""
    state = BalancedSampler(epochs_of()).state_dict()
    del state["order"]
    with pytest.raises(CacheMismatchError, match="order: None -> 3"):
        BalancedSampler(epochs_of()).load_state_dict(state)
