"""What a host needs of a guard: the adapters' only view of :class:`cgd_wrap.CGDGuard`."""

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
    """A guard after its scan.

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
        """Clean, triggered and mixed samples."""
        ...

    @property
    def dataset(self) -> GuardedDataset:
        """The user's dataset with tagged labels."""
        ...

    def sampler(self, seed: int = 0) -> BalancedSampler:
        """Yields an epoch of indices into the guarded dataset."""
        ...

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion. Default: cross entropy."""
        ...

    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None = None, *,
        epochs: int | None = None,
    ) -> tuple[DataLoader[Any], CGDLoss]:  # fmt: skip
        """The loader over the guarded samples, and the criterion wrapped."""
        ...

    def stopping(
        self, tolerance: float | None = None, *, loader: DataLoader[Any] | None = None
    ) -> CleanAccuracyStopping | None:
        """The tolerance rule on clean data that isn't trained on."""
        ...
