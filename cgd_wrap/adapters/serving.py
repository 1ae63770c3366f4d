"""Checking what a host's own loader really serves, before the host trains on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.escaping import brief
from cgd_wrap.randomness import kept_rng
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.sampler import BalancedSampler
from cgd_wrap.train.tags import TAG


def is_guarded(loader: Any, guard: Guarded) -> bool:
    """Whether a loader serves the guarded dataset of a guard, or the guard's balanced view."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, (GuardedDataset, BalancedView)) and dataset.base is guard.base


def balanced_samplers(loader: Any) -> list[BalancedSampler]:
    """Find the guard's samplers that a loader draws by, however hosts have wrapped them."""
    roots = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
    found = {id(sampler): sampler for root in roots for sampler in _chain(root)}
    return [sampler for sampler in found.values() if isinstance(sampler, BalancedSampler)]


def _chain(sampler: Any) -> Iterator[Any]:
    """Yield a sampler and all samplers that it wraps, as Accelerate and Lightning nest them."""
    while sampler is not None:
        yield sampler
        if isinstance(sampler, DistributedSampler):
            sampler = getattr(getattr(sampler, "dataset", None), "_sampler", None)
        else:
            inner = (getattr(sampler, name, None) for name in ("batch_sampler", "sampler"))
            sampler = next((s for s in inner if s is not None), None)


def check_collation(loader: Any, guard: Guarded, label_key: str) -> None:
    """Check that a loader's collate function keeps tags, by trying it on two tagged samples.

    The random generators are left in the state that they had before.

    Args:
        loader: loader of the guarded dataset.
        guard: a guard that has scanned.
        label_key: key under which the host looks for the labels in a batch.

    Raises:
        ValueError: the tags don't come through, as under mixup or CutMix.
    """
    split = guard.split
    readable = split.clean | split.triggered | split.mixed
    indices = readable.nonzero().squeeze(1)[:2].tolist()
    cure = (
        "A guarded batch needs each sample's own label, as an int64: turn off mixup and CutMix, "
        "one-hot and soft labels in the collate function"
    )
    with kept_rng():
        samples = guard.dataset.__getitems__(indices)
        try:
            batch = loader.collate_fn(samples)
        except Exception as error:
            raise ValueError(
                f"the collate function fails on tagged labels ({brief(error)}). {cure}"
            ) from error
    labels = batch.get(label_key) if isinstance(batch, Mapping) else None
    if labels is None:
        got = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"the collate function's batches have no {label_key!r}, which the guarded loss needs; "
            f"got {got}. Name the labels {label_key!r} there or in the dataset"
        )
    if not isinstance(labels, Tensor) or labels.tolist() != [TAG + index for index in indices]:
        raise ValueError(f"the collate function changes the labels. {cure}")
