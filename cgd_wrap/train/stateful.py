"""Loaders that save where they are: torchdata's StatefulDataLoader, alone or under Accelerate."""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data import BatchSampler, DataLoader


def stateful_types() -> dict[str, type]:
    """Loader and samplers of torchdata by name; empty if nobody has imported torchdata."""
    loaders = sys.modules.get("torchdata.stateful_dataloader.stateful_dataloader")
    samplers = sys.modules.get("torchdata.stateful_dataloader.sampler")
    if loaders is None or samplers is None:
        return {}
    return {
        "StatefulDataLoader": loaders.StatefulDataLoader,
        "RandomSampler": samplers.RandomSampler,
        "BatchSampler": samplers.BatchSampler,
        "StatefulDistributedSampler": samplers.StatefulDistributedSampler,
    }


def check_no_state(loader: DataLoader[Any]) -> None:
    """Refuse a loader that was given a state, which the rebuilt loader would not have.

    Raises:
        ValueError: ``load_state_dict`` was called.
    """
    if getattr(loader, "next_iter_state", None) is not None:
        raise ValueError(
            "this loader has been given a state, which the guarded loader would not have: call "
            "guard.protect first, and load_state_dict on the loader that it returns"
        )


def make_batches_stateful(loader: DataLoader[Any]) -> None:
    """Let stateful loaders ask torch's BatchSampler for the place of the guard's sampler.

    torchdata and Accelerate save the state of a loader's batch sampler. torchdata's BatchSampler
    has one; torch's own has none, so that an epoch would be lost. It gets one here, and no other
    class, since Lightning rebuilds loaders by the type of their batch sampler.
    """
    if type(loader.batch_sampler) is BatchSampler:
        batches: Any = loader.batch_sampler
        place = BatchPlace(batches, loader.num_workers)
        batches.state_dict, batches.load_state_dict = place.state_dict, place.load_state_dict


class BatchPlace:
    """The state of a BatchSampler over the guard's sampler.

    Args:
        batches: the batch sampler.
        num_workers: worker processes of the loader.
    """

    def __init__(self, batches: BatchSampler, num_workers: int) -> None:
        self.sampler: Any = batches.sampler
        self.least = batches.batch_size if batches.drop_last else 1  # samples of a batch
        self.num_workers = num_workers

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state."""
        return dict(self.sampler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the sampler's state, in whose epoch there may be no batch left.

        An epoch that was over has a last pass in torchdata, which is thrown away. With workers,
        the pass has drawn indices by then; without, it hasn't begun.
        """
        epoch, position = state_dict["epoch"], state_dict["position"]
        if len(self.sampler) - position < self.least:
            epoch, position = epoch + 1, 0
        if self.num_workers and position == 0 and epoch > 0:
            epoch, position = epoch - 1, len(self.sampler)
        self.sampler.load_state_dict({**state_dict, "epoch": epoch, "position": position})
