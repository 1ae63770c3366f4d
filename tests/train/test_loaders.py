from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from tiny_data import Items
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from cgd_wrap import BalancedSampler
from cgd_wrap.data import SampleLayout
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.loaders import KEPT, guarded_loader
from cgd_wrap.train.tags import TAG

SIZE = 40
BASE = TensorDataset(torch.arange(SIZE).float()[:, None], torch.arange(SIZE) % 4)
INDEX = torch.arange(SIZE)
# Three clean samples of the first class for every two of the others; every fifth once.
EPOCHS = EpochIndices(
    labels=(INDEX % 3 > 0).long() + (INDEX % 3 > 1).long(),
    clean=INDEX % 5 > 1,
    times=(INDEX % 5 == 0).long(),
)


def guarded(loader: DataLoader, base=BASE) -> DataLoader:
    return guarded_loader(loader, base, GuardedDataset(base, SampleLayout(0, 1)), EPOCHS)


def indices_in(loader: DataLoader) -> list[int]:
    return (torch.cat([targets for _, targets in loader]) - TAG).tolist()


def first_sample(samples):
    return samples[0]


def greet(worker: int) -> None:
    pass


# --- what is kept -------------------------------------------------------------------------------


def test_every_option_survives():
    options = {
        "num_workers": 1, "collate_fn": first_sample, "pin_memory": True, "timeout": 7.0,
        "worker_init_fn": greet, "multiprocessing_context": "spawn",
        "generator": torch.Generator(), "prefetch_factor": 3, "persistent_workers": True,
        "in_order": False, "drop_last": True, "batch_size": 5,
    }  # fmt: skip
    loader = DataLoader(BASE, shuffle=True, **options)
    found = guarded(loader)
    assert type(found) is DataLoader
    for name in options:
        assert getattr(found, name) == getattr(loader, name), name
    assert isinstance(found.sampler, BalancedSampler)
    assert isinstance(found.dataset, GuardedDataset)


def test_no_option_of_a_loader_is_forgotten():
    elsewhere = {
        "self", "dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last",
        "generator",
        "pin_memory_device",  # deprecated: the accelerator is taken
    }  # fmt: skip
    assert set(inspect.signature(DataLoader.__init__).parameters) <= elsewhere | set(KEPT)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_is_served_in_batches_of_the_same_size(drop_last, num_workers):
    loader = DataLoader(BASE, 7, shuffle=True, drop_last=drop_last, num_workers=num_workers)
    found = guarded(loader)
    sizes = [len(targets) for _, targets in found]
    whole, rest = divmod(len(EPOCHS), 7)
    assert sizes == [7] * whole + ([rest] if rest and not drop_last else [])
    assert len(found) == len(sizes)


def test_a_batch_sampler_of_the_user_keeps_its_numbers():
    loader = DataLoader(BASE, batch_sampler=BatchSampler(RandomSampler(BASE), 6, True))
    found = guarded(loader)
    assert (found.batch_sampler.batch_size, found.batch_sampler.drop_last) == (6, True)
    assert isinstance(found.batch_sampler.sampler, BalancedSampler)
    assert {len(targets) for _, targets in found} == {6}


@pytest.mark.parametrize("in_batch_sampler", [True, False])
def test_distributed_sampling_is_sharded_alike(in_batch_sampler):
    served = []
    for rank in range(3):
        sampler = DistributedSampler(BASE, num_replicas=3, rank=rank, drop_last=True)
        options = (
            {"batch_sampler": BatchSampler(sampler, 4, False)}
            if in_batch_sampler
            else {"batch_size": 4, "sampler": sampler}
        )
        found = guarded(DataLoader(BASE, **options))
        served.append(indices_in(found))
    expected = EPOCHS.shuffled(0).tolist()[: len(EPOCHS) // 3 * 3]
    steps = range(0, len(served[0]), 4)
    assert [index for i in steps for share in served for index in share[i : i + 4]] == expected


def test_the_last_samples_are_repeated_where_distributed_sampling_does():
    sampler = DistributedSampler(BASE, num_replicas=4, rank=3)
    found = guarded(DataLoader(BASE, 4, sampler=sampler))
    assert len(found.sampler) == -(-len(EPOCHS) // 4)


def test_epochs_differ_and_hold_the_same_samples():
    found = guarded(DataLoader(BASE, 8, shuffle=True))
    first, second = indices_in(found), indices_in(found)
    assert first != second
    assert set(first) == set(second) == set(EPOCHS.of(0).tolist())
    once = EPOCHS.times.nonzero().squeeze(1).tolist()
    assert {Counter(first)[index] for index in once} == {1}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_stream_is_left_alone(num_workers):
    state = torch.get_rng_state()
    indices_in(guarded(DataLoader(BASE, 8, shuffle=True, num_workers=num_workers)))
    assert torch.equal(torch.get_rng_state(), state)


# --- what is refused ----------------------------------------------------------------------------


class OwnLoader(DataLoader):
    pass


class OwnBatches(BatchSampler):
    pass


OTHER = Items([(torch.zeros(1), 0)] * SIZE)
REFUSED = {
    "a subclass": (lambda: OwnLoader(BASE, 4), TypeError, "got OwnLoader"),
    "another dataset": (lambda: DataLoader(OTHER, 4), ValueError, r"\(Items\) is not the one"),
    "single samples": (lambda: DataLoader(BASE, None), TypeError, "batch_size=None"),
    "own batches": (
        lambda: DataLoader(BASE, batch_sampler=OwnBatches(RandomSampler(BASE), 4, False)),
        TypeError, "OwnBatches decides itself",
    ),
    "a list of batches": (
        lambda: DataLoader(BASE, batch_sampler=[[0, 1], [2]]), TypeError, "list decides itself",
    ),
    "weighted sampling": (
        lambda: DataLoader(BASE, 4, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE)),
        TypeError, "WeightedRandomSampler would be replaced",
    ),
    "a subset": (
        lambda: DataLoader(BASE, 4, sampler=SubsetRandomSampler([0, 1])),
        TypeError, "SubsetRandomSampler would be replaced",
    ),
    "some of the samples": (
        lambda: DataLoader(BASE, 4, sampler=RandomSampler(BASE, num_samples=SIZE // 2)),
        TypeError, "RandomSampler would be replaced",
    ),
    "replacement": (
        lambda: DataLoader(BASE, 4, sampler=RandomSampler(BASE, replacement=True)),
        TypeError, "RandomSampler would be replaced",
    ),
    "a list of indices": (
        lambda: DataLoader(BASE, 4, sampler=[0, 1]), TypeError, "list would be replaced",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_over_is_refused(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        guarded(make())


def test_a_loader_that_accelerate_has_prepared_is_refused():
    prepared = Accelerator(cpu=True).prepare(DataLoader(BASE, 4, shuffle=True))
    with pytest.raises(ValueError, match=r"prepared by Accelerate: call guard\.protect first"):
        guarded(prepared)


def test_accelerate_prepares_a_guarded_loader():
    loader = guarded(DataLoader(BASE, 4, shuffle=True))
    expected = [indices_in(guarded(DataLoader(BASE, 4))), EPOCHS.shuffled(1).tolist()]
    prepared = Accelerator(cpu=True).prepare(loader)
    assert [indices_in(prepared), indices_in(prepared)] == expected
