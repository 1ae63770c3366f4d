"""What training needs of a scan: tagged samples, the epochs' order, the loss, the stopping rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from cgd_wrap.config import CGDConfig
from cgd_wrap.data import LabelledImages
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.criteria import Criterion
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.loaders import guarded_loader
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.sampler import EpochIndices
from cgd_wrap.train.stopping import CleanAccuracyStopping
from cgd_wrap.train.tags import SampleTable


@dataclass(frozen=True, eq=False)
class Protection:
    """A scan's outcome under one configuration; all losses and epochs share its table.

    Attributes:
        result: of the scan.
        config: of the training.
        dataset: the user's dataset with tagged labels.
    """

    result: ScanResult
    config: CGDConfig
    dataset: GuardedDataset

    @cached_property
    def table(self) -> SampleTable:
        """What the loss knows of each sample."""
        config = self.config.decided(trained=self.result.trained)
        return SampleTable.for_result(self.result, config)

    @property
    def epoch_indices(self) -> EpochIndices:
        """Which samples an epoch holds."""
        return EpochIndices.for_result(self.result, self.config, self.table)

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion. Default: cross entropy."""
        return CGDLoss.for_result(self.result, criterion, self.config, table=self.table)

    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None, epochs: int | None
    ) -> tuple[DataLoader[Any], CGDLoss]:
        """The loader over the guarded dataset and its sampler, and the criterion wrapped.

        Every option of the loader is kept, except its order: that is the sampler's.

        Args:
            loader: of the dataset that the guard was made for, not yet prepared by Accelerate.
            criterion: of the user's loop. Default: cross entropy.
            epochs: how many the loop runs. The second half then has fewer blends in a repair, and
                the only ones of a fresh model (see ``CGDConfig.early_exposure``). None: all epochs
                are as the first half.

        Raises:
            TypeError: for a loader that can't be rebuilt.
            ValueError: for a loader of another dataset, or one that Accelerate has prepared.
        """
        indices = self.epoch_indices.in_run_of(epochs)
        guarded = guarded_loader(loader, self.dataset.base, self.dataset, indices)
        return guarded, self.loss(criterion)

    def stopping(
        self,
        tolerance: float | None,
        loader: DataLoader[Any] | None,
        view: Any,
        *,
        num_workers: int = 0,
    ) -> CleanAccuracyStopping | None:
        """The tolerance rule on clean data that isn't trained on.

        Args:
            tolerance: percentage points; None is the configuration's.
            loader: the user's validation data. None is the part of the clean split that is held
                out, as ``view`` shows it.
            view: ``[i] -> image tensor``, as the model is evaluated.
            num_workers: of the loader for the held-out part.

        Returns:
            None if there is no loader and nothing is held out.
        """
        if loader is None:
            indices = self.result.held_out.nonzero().squeeze(1).tolist()
            if not indices:
                return None
            pairs = LabelledImages(view, self.result.labels)
            loader = DataLoader(
                Subset(pairs, indices), batch_size=self.config.batch_size,
                num_workers=num_workers, generator=torch.Generator(),
            )  # fmt: skip
        return CleanAccuracyStopping(
            loader, self.config.tolerance if tolerance is None else tolerance
        )
