"""Rebuilding the user's DataLoader over the guarded dataset."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.mixing import refuse_mixing
from cgd_wrap.train.sampler import BalancedSampler, ShardedSampler
from cgd_wrap.train.stateful import check_no_state, make_batches_stateful, stateful_types

# Arguments of a DataLoader that are kept: all but dataset and sampling (torch 2.6 to 2.15; the
# last one is of torchdata's StatefulDataLoader).
KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order",
    "snapshot_every_n_steps",
)  # fmt: skip


def guarded_loader(
    loader: DataLoader[Any], base: Any, dataset: GuardedDataset, epochs: EpochIndices
) -> DataLoader[Any]:
    """Build a loader like the user's that draws samples of the guarded dataset.

    Args:
        loader: the user's loader of ``base``: a DataLoader, or torchdata's StatefulDataLoader. If
            it has a ``DistributedSampler``, the new loader divides its samples among the same
            processes, and follows that sampler's epoch.
        base: the dataset that the guard was made for.
        dataset: the guarded dataset.
        epochs: which samples an epoch holds.

    Raises:
        TypeError: the loader is of another subclass of DataLoader, or its sampling can't be kept.
        ValueError: the loader is of another dataset, has been prepared by Accelerate, has been
            given a state, or blends labels in its collate function.
    """
    _check(loader, base)
    options = {name: getattr(loader, name) for name in KEPT if hasattr(loader, name)}
    if loader.num_workers == 0:
        options.pop("prefetch_factor", None)
    # Without a generator of its own, a loader draws from the global stream at every epoch.
    options["generator"] = loader.generator or torch.Generator().manual_seed(epochs.seed)
    sampling = loader.sampler
    batches: Any = loader.batch_sampler
    sampler = _sampler(getattr(batches, "sampler", sampling), epochs, batches.batch_size)
    if loader.batch_size is None:  # the user gave a batch_sampler
        options["batch_sampler"] = type(batches)(sampler, batches.batch_size, batches.drop_last)
    else:
        options |= {
            "batch_size": loader.batch_size, "sampler": sampler, "drop_last": loader.drop_last,
        }  # fmt: skip
    guarded = type(loader)(dataset, **options)
    make_batches_stateful(guarded)
    return guarded


def _sampler(old: Any, epochs: EpochIndices, batch_size: int) -> BalancedSampler:
    if not isinstance(old, DistributedSampler):
        return BalancedSampler(epochs, replaced=old)
    return ShardedSampler(
        epochs,
        num_replicas=old.num_replicas, rank=old.rank, drop_last=old.drop_last,
        batch_size=batch_size, replaced=old,
    )  # fmt: skip


def _draws_each_once(sampler: Any) -> bool:
    """Whether a sampler draws each sample once, so that replacing it loses only the order."""
    more = stateful_types()
    if type(sampler) in (RandomSampler, more.get("RandomSampler")):
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) in (
        SequentialSampler, DistributedSampler, BalancedSampler, ShardedSampler,
        more.get("StatefulDistributedSampler"),
    )  # fmt: skip


def _check(loader: DataLoader[Any], base: Any) -> None:
    if hasattr(loader, "_is_accelerate_prepared") or hasattr(loader, "base_dataloader"):
        raise ValueError(
            "this loader has been prepared by Accelerate: call guard.protect first, and "
            "accelerator.prepare on what it returns"
        )
    more = stateful_types()
    if type(loader) not in (DataLoader, more.get("StatefulDataLoader")):
        raise TypeError(
            f"expected a torch.utils.data.DataLoader, got {type(loader).__name__}, whose own "
            "behaviour would be lost. Build it over guard.balanced_view instead, and wrap the "
            "criterion with guard.loss"
        )
    if isinstance(loader.dataset, (GuardedDataset, BalancedView)):
        raise ValueError(
            "this loader is guarded already: call guard.protect once, before the loop, with the "
            "loader of your own dataset"
        )
    if loader.dataset is not base:
        raise ValueError(
            f"the loader's dataset ({type(loader.dataset).__name__}) is not the one that this "
            f"guard was made for ({type(base).__name__}). Make the guard for loader.dataset"
        )
    refuse_mixing(loader.collate_fn)
    check_no_state(loader)
    batches: Any = loader.batch_sampler
    if batches is None:
        raise TypeError(
            "a loader with batch_size=None yields single samples, which the loss can't balance; "
            "give it a batch_size"
        )
    if type(batches) not in (BatchSampler, more.get("BatchSampler")):
        raise TypeError(
            f"{type(batches).__name__} decides itself what a batch holds, so it can't be carried "
            "over. Use it over guard.balanced_view, and wrap the criterion with guard.loss"
        )
    if not _draws_each_once(batches.sampler):
        raise TypeError(
            f"the loader's {type(batches.sampler).__name__} would be replaced by the guard's "
            "sampler. If that is what you want, pass a loader with shuffle=True; otherwise use "
            "guard.balanced_view with it"
        )
