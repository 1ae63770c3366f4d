"""Loaders that save where they are: a restored one serves what was left, then the next epochs."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from tiny_data import NAMES, SIZE, TintReader, quick_config, tensors, tiny_net
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from cgd_wrap import CGDGuard
from cgd_wrap.errors import CacheMismatchError

BATCH = 8
pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated",  # torchdata 0.11 under torch 2.14
)


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    config = quick_config(exposure_rate=0.5, late_exposure=0.1)
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()  # fmt: skip


def served(loader):
    """The batches of a pass: tags and images, blends included."""
    return [(targets.tolist(), images.sum(dim=(1, 2, 3)).tolist()) for images, targets in loader]


def begun(loader, batches):
    """Serve some batches of a pass, and leave it there."""
    found = []
    for images, targets in loader:
        found.append((targets.tolist(), images.sum(dim=(1, 2, 3)).tolist()))
        if len(found) == batches:
            break
    return found


KINDS = {
    "shuffled": lambda data, **options: StatefulDataLoader(data, BATCH, shuffle=True, **options),
    "in order": lambda data, **options: StatefulDataLoader(data, BATCH, **options),
    "torch's batches": lambda data, **options: StatefulDataLoader(
        data, batch_sampler=BatchSampler(SequentialSampler(data), BATCH, False), **options
    ),
    "distributed": lambda data, **options: StatefulDataLoader(
        data, BATCH, sampler=StatefulDistributedSampler(data, 2, 1), **options
    ),
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in KINDS), ("shuffled", 1), ("torch's batches", 1)]
)
def test_torchdatas_loader_goes_on_where_it_was(guard, kind, workers):
    """FAULTS row 60."""

    def loader():
        return guard.protect(KINDS[kind](guard.base, num_workers=workers), epochs=4)[0]

    whole = loader()
    assert type(whole) is StatefulDataLoader
    epochs = [served(whole) for _ in range(4)]  # the last two with fewer blends
    for epoch, batches in ((1, 3), (1, len(epochs[1]))):
        first = loader()
        for _ in range(epoch):
            served(first)
        assert begun(first, batches) == epochs[epoch][:batches]
        restored = loader()
        restored.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        found = [served(restored) for _ in range(2)]
        if batches == len(epochs[epoch]):  # nothing is left: torchdata's empty pass, or none
            found = [*filter(None, found), served(restored)][:2]
            assert found == epochs[epoch + 1 :][:2]
        else:
            assert found == [epochs[epoch][batches:], epochs[epoch + 1]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("drop_last", [False, True])
def test_torchdatas_loader_saved_between_epochs_goes_on_with_the_next(guard, workers, drop_last):
    def loader():
        plain = StatefulDataLoader(
            guard.base, BATCH, shuffle=True, num_workers=workers, drop_last=drop_last
        )
        return guard.protect(plain, epochs=4)[0]

    first = loader()
    served(first)
    state, restored = first.state_dict(), loader()
    restored.load_state_dict(state)
    assert served(restored) == served(first)
    assert served(restored) == served(first)


def test_the_state_is_plain_json(guard):
    loader = guard.protect(StatefulDataLoader(guard.base, BATCH))[0]
    begun(loader, 1)
    state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("workers", "epoch", "stateful"),
    [(0, 0, False), (0, 1, False), (1, 1, False), (0, 1, True), (1, 1, True)],
)
def test_accelerates_stateful_loader_goes_on_where_it_was(
    guard, workers, epoch, stateful, tmp_path
):
    """FAULTS row 60: no ``set_epoch`` by the user, who starts a new process to resume."""

    def loader(accelerator):
        kind = StatefulDataLoader if stateful else DataLoader
        plain = kind(guard.base, BATCH, shuffle=True, num_workers=workers)
        return accelerator.prepare(guard.protect(plain, epochs=4)[0])

    def accelerator():
        return Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True)
        )

    whole = loader(accelerator())
    epochs = [served(whole) for _ in range(4)]
    for batches in (3, None):  # in the middle of an epoch, and at its end
        one = accelerator()
        first = loader(one)
        for _ in range(epoch):
            served(first)
        if batches:
            begun(first, batches)
        else:
            served(first)
        one.save_state(tmp_path)
        other = accelerator()
        restored = loader(other)
        other.load_state(tmp_path)
        found = [served(restored) for _ in range(2)]
        expected = [epochs[epoch][batches:], epochs[epoch + 1]]
        assert found == (expected if batches else epochs[epoch + 1 :][:2])


def test_skipped_batches_are_those_of_the_epoch_that_was_set(guard):
    accelerator = Accelerator(cpu=True)

    def loader():
        return accelerator.prepare(
            guard.protect(DataLoader(guard.base, BATCH, shuffle=True), epochs=4)[0]
        )

    whole = loader()
    epochs = [served(whole) for _ in range(3)]
    again = loader()
    again.set_epoch(1)
    assert served(accelerator.skip_first_batches(again, 2)) == epochs[1][2:]
    again.set_epoch(2)
    assert served(again) == epochs[2]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_balanced_view_goes_on_in_torchdatas_loader(guard, workers, persistent):
    def loader():
        guard._view = None  # as in a new process
        generator = torch.Generator().manual_seed(1)
        return StatefulDataLoader(
            guard.balanced_view, BATCH, shuffle=True, generator=generator, num_workers=workers,
            persistent_workers=persistent and workers > 0,
        )  # fmt: skip

    first = loader()
    first.dataset.set_run(4)
    for _ in range(2):
        served(first)
    first.dataset.set_epoch(2)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    expected = served(iterator)
    restored = loader()
    restored.load_state_dict(state)
    assert served(restored) == expected
    assert restored.dataset.epoch == 2


def test_a_loader_that_was_given_a_state_before_is_refused(guard):
    loader = StatefulDataLoader(guard.base, BATCH)
    state = loader.state_dict()
    loader.load_state_dict(state)
    with pytest.raises(ValueError, match=r"call guard\.protect first, and load_state_dict on"):
        guard.protect(loader)


def test_a_subclass_of_torchdatas_loader_is_refused(guard):
    class Own(StatefulDataLoader):
        pass

    with pytest.raises(TypeError, match="got Own, whose own behaviour would be lost"):
        guard.protect(Own(guard.base, BATCH))


def test_a_state_of_other_data_is_refused_by_torchdatas_loader(guard):
    other = CGDGuard(
        tiny_net(), tensors(60), NAMES, clip=TintReader(), config=guard.config, progress=False
    ).scan()  # fmt: skip
    first = guard.protect(StatefulDataLoader(guard.base, BATCH))[0]
    begun(first, 1)
    second = other.protect(StatefulDataLoader(other.base, BATCH))[0]
    second.load_state_dict(first.state_dict())
    with pytest.raises(CacheMismatchError, match=f"samples: {SIZE} -> 60"):
        served(second)
