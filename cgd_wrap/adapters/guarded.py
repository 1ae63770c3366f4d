"""The part of :class:`cgd_wrap.CGDGuard` that the adapters use; they know nothing else of it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn
from torch.utils.data import DataLoader

from cgd_wrap.config import CGDConfig
from cgd_wrap.functional import Split
from cgd_wrap.train.criteria import Criterion
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.sampler import BalancedSampler
from cgd_wrap.train.stopping import CleanAccuracyStopping


class Guarded(Protocol):
    """A guard that has scanned its dataset, as the adapters see it.

    Attributes:
        base: the user's dataset.
        model: the user's classifier.
        config: the guard's configuration.
    """

    base: Any
    model: nn.Module
    config: CGDConfig

    @property
    def split(self) -> Split:
        """The split of the dataset into clean, triggered and mixed samples."""
        ...

    @property
    def dataset(self) -> GuardedDataset:
        """The user's dataset with tags in place of labels."""
        ...

    def sampler(self, seed: int = 0) -> BalancedSampler:
        """Make a sampler that yields the indices of an epoch's samples in the guarded dataset."""
        ...

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap the user's criterion in the guarded loss. Default: cross entropy."""
        ...

    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None = None, *,
        epochs: int | None = None,
    ) -> tuple[DataLoader[Any], CGDLoss]:  # fmt: skip
        """Rebuild a loader over the guarded samples, and wrap the criterion in the guarded loss."""
        ...

    def stopping(
        self, tolerance: float | None = None, *, loader: DataLoader[Any] | None = None
    ) -> CleanAccuracyStopping | None:
        """Make the stopping rule, which watches accuracy on clean data that isn't trained on."""
        ...
