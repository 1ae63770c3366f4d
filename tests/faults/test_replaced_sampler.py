"""Another sampler in place of the guard's is noticed (row 57), loaders made anew are (row 60)."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_data import NAMES, Items, TintReader, quick_config, tensors, tiny_net
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, WeightedRandomSampler

from cgd_wrap import BalancedSampler, CGDGuard, CGDLoss

SIZE, BATCH = 240, 16


@functools.cache
def scanned() -> CGDGuard:
    config = quick_config(holdout_fraction=0.3)
    return CGDGuard(
        tiny_net(), Items(tensors(SIZE)), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()


def guard_of(*, holds_out: bool = True, **changes: Any) -> CGDGuard:
    """A guard with a result of its own, by which its samplers are known."""
    guard = copy.copy(scanned())
    held_out = guard.result.held_out & holds_out
    guard.config = guard.config.replace(**changes)
    guard._adopt(replace(guard.result, held_out=held_out))
    return guard


def opacus(loader: DataLoader) -> Any:
    from opacus.data_loader import DPDataLoader

    return DPDataLoader.from_data_loader(loader)


def ray(loader: DataLoader) -> DataLoader:
    """As ray.train.torch.prepare_data_loader makes a loader anew."""
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=0)
    return DataLoader(loader.dataset, loader.batch_size, sampler=sampler)


REPLACED: dict[str, Callable[[DataLoader], Any]] = {
    "shuffled": lambda loader: DataLoader(loader.dataset, BATCH, shuffle=True),
    "in order": lambda loader: DataLoader(loader.dataset, BATCH),
    "ray": ray,
    "opacus": opacus,
    "weighted": lambda loader: DataLoader(
        loader.dataset, BATCH, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE)
    ),
    "few": lambda loader: DataLoader(
        loader.dataset, BATCH, sampler=RandomSampler(loader.dataset, num_samples=4 * BATCH)
    ),
}


def train(guard: CGDGuard, loader: Any, criterion: CGDLoss, epochs: int = 1) -> None:
    for _ in range(epochs):
        for images, targets in loader:
            if len(targets):
                criterion(guard.model(images), targets).backward()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    """How often a warning with a word in it was given."""
    caplog.set_level(logging.WARNING, "cgd_wrap")
    return lambda word: sum(word in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("kind", REPLACED)
def test_another_sampler_is_said_once_by_name(kind, said):
    """Row 57."""
    if kind == "opacus":
        pytest.importorskip("opacus")
    guard = guard_of(holds_out=False)
    loader, criterion = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    train(guard, REPLACED[kind](loader), criterion, epochs=3)
    assert said("that the guard's sampler didn't draw") == 1
    assert said("Give that tool guard.balanced_view as its dataset") == 1


def test_under_strict_another_sampler_is_an_error():
    """Row 57."""
    guard = guard_of(strict=True)
    loader, criterion = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    with pytest.raises(ValueError, match="put a sampler of its own in place"):
        train(guard, REPLACED["shuffled"](loader), criterion)


@pytest.mark.parametrize("copied", [lambda loss: loss, copy.deepcopy, lambda loss: pickled(loss)])
def test_a_sampler_that_is_replaced_later_is_told_by_the_samples_held_out(copied, said):
    """Row 57: after an epoch of the guard's own, and in copies of the loss, too."""
    guard = guard_of()
    loader, criterion = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    train(guard, loader, criterion)
    criterion = copied(criterion)
    train(guard, loader, criterion)
    assert not said("sampler")
    train(guard, REPLACED["shuffled"](loader), criterion)
    assert said("sampler") == 1


def pickled(loss: CGDLoss) -> CGDLoss:
    return pickle.loads(pickle.dumps(loss))


def own_sampler(guard: CGDGuard) -> DataLoader:
    return DataLoader(guard.dataset, BATCH, sampler=guard.sampler(seed=5))


def sampler_of_the_result(guard: CGDGuard) -> DataLoader:
    return DataLoader(guard.dataset, BATCH, sampler=BalancedSampler.for_result(guard.result))


def view(guard: CGDGuard) -> DataLoader:
    sampler = DistributedSampler(guard.balanced_view, num_replicas=2, rank=1)
    return DataLoader(guard.balanced_view, BATCH, sampler=sampler)


def workers(guard: CGDGuard) -> DataLoader:
    plain = DataLoader(guard.base, BATCH, num_workers=1, persistent_workers=True)
    return guard.protect(plain)[0]


@pytest.mark.parametrize("made", [own_sampler, sampler_of_the_result, view, workers])
def test_the_guards_own_samplers_and_view_raise_no_alarm(made, said):
    """Row 57: each way of the guide to load guarded samples."""
    guard = guard_of()
    _, criterion = guard.protect(DataLoader(guard.base, BATCH))
    train(guard, made(guard), criterion, epochs=2)
    assert not said("sampler")


def test_batches_picked_by_hand_and_evaluations_raise_no_alarm(said):
    """Row 57: before the first epoch, in which the guard's sampler hasn't drawn yet."""
    guard = guard_of()
    loader, criterion = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    picked = torch.utils.data.default_collate([guard.dataset[index] for index in range(BATCH)])
    train(guard, [picked] * 20, criterion)
    with torch.no_grad():
        for images, targets in DataLoader(guard.dataset, BATCH):
            criterion(guard.model(images), targets)
    train(guard, loader, criterion)
    train(guard, [picked] * 20, criterion)
    assert not said("sampler")


# --- loaders made anew --------------------------------------------------------------------------


def test_loaders_made_anew_for_each_epoch_are_said_once(said):
    """Row 60: each begins at the first epoch, and early exposure never ends."""
    guard = guard_of()
    for _ in range(5):
        loader, criterion = guard.protect(DataLoader(guard.base, BATCH), epochs=5)
        train(guard, loader, criterion)
    assert said("Loaders are made anew for each epoch") == 1


@pytest.mark.parametrize("criterion_again", [False, True])
def test_loaders_made_anew_that_are_told_their_epoch_draw_as_one_loader(criterion_again, said):
    """Row 60: what the warning says to do gives the same draws."""
    guard, served, criterion = guard_of(), [], None
    for epoch in range(4):
        given = criterion if criterion_again else None
        loader, criterion = guard.protect(DataLoader(guard.base, BATCH), given, epochs=4)
        loader.batch_sampler.sampler.set_epoch(epoch)
        served += [targets for _, targets in loader]
    loader, _ = guard.protect(DataLoader(guard.base, BATCH), epochs=4)
    expected = [targets for _ in range(4) for _, targets in loader]
    assert torch.equal(torch.cat(served), torch.cat(expected))
    assert not said("anew")


def test_several_runs_raise_no_alarm(said):
    """Row 60: runs of several epochs, of one epoch, and loaders that were never drawn from."""
    guard = guard_of()
    for epochs in (2, 2, 2):
        loader, criterion = guard.protect(DataLoader(guard.base, BATCH), epochs=epochs)
        train(guard, loader, criterion, epochs)
    for _ in range(3):
        loader, criterion = guard.protect(DataLoader(guard.base, BATCH), epochs=1)
        train(guard, loader, criterion)
    for _ in range(3):
        guard.protect(DataLoader(guard.base, BATCH))
    assert not said("anew")


def test_a_guarded_loader_is_not_guarded_again():
    """Row 60: a loop that passes what it got in the epoch before."""
    guard = guard_of()
    loader, _ = guard.protect(DataLoader(guard.base, BATCH))
    with pytest.raises(ValueError, match=r"guarded already: call guard\.protect once, before"):
        guard.protect(loader)


def test_batches_of_another_guard_are_refused():
    """Row 57: loaders and criteria that were mixed up, as in cross-validation."""
    large, small = guard_of(), CGDGuard(
        tiny_net(), Items(tensors(SIZE // 2)), NAMES, clip=TintReader(), config=quick_config(),
        progress=False,
    ).scan()  # fmt: skip
    loader, _ = large.protect(DataLoader(large.base, SIZE))
    criterion = small.loss()
    images, targets = next(iter(loader))
    with pytest.raises(ValueError, match="loader and criterion are of two guards"):
        criterion(large.model(images), targets)
