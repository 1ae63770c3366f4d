"""Making the parts of a guarded training from the result of a scan, all from one table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from cgd_wrap.config import CGDConfig
from cgd_wrap.data import LabelledImages
from cgd_wrap.randomness import plain_torch
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
    """The parts of a guarded training: tagged samples, epochs' indices, loss and stopping rule.

    All losses and epochs share a table of samples, made once from result and configuration.

    Attributes:
        result: result of the scan.
        config: configuration of the training.
        dataset: the user's dataset with tagged labels.
    """

    result: ScanResult
    config: CGDConfig
    dataset: GuardedDataset

    @cached_property
    @plain_torch()
    def table(self) -> SampleTable:
        """The table of what the loss knows of each sample."""
        config = self.config.decided(trained=self.result.trained)
        return SampleTable.for_result(self.result, config)

    @property
    def epoch_indices(self) -> EpochIndices:
        """The indices that each epoch holds."""
        return EpochIndices.for_result(self.result, self.config, self.table)

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap the user's criterion in the guarded loss. Default: cross entropy."""
        return CGDLoss.for_result(self.result, criterion, self.config, table=self.table)

    @plain_torch()
    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None, epochs: int | None
    ) -> tuple[DataLoader[Any], CGDLoss]:
        """Rebuild a loader over the guarded samples, and wrap the criterion in the guarded loss.

        Every option of the loader is kept except the order, which the guard's sampler decides.

        Args:
            loader: loader of the dataset that the guard was made for, not yet prepared by
                Accelerate.
            criterion: criterion of the user's loop. Default: cross entropy.
            epochs: number of epochs that the loop runs. In a repair, the second half of the epochs
                then has fewer blends; in a training from scratch, only the second half has blends
                (see ``CGDConfig.early_exposure``). None: all epochs are as the first half.

        Raises:
            TypeError: the loader can't be rebuilt.
            ValueError: the loader serves another dataset, or was prepared by Accelerate.
        """
        indices = self.epoch_indices.in_run_of(epochs)
        guarded = guarded_loader(loader, self.dataset.base, self.dataset, indices)
        return guarded, self.loss(criterion)

    def held_out_stopping(
        self, tolerance: float | None, view: Any, num_workers: int = 0
    ) -> CleanAccuracyStopping | None:
        """Make the stopping rule on the part of the clean split that is held out of training.

        Args:
            tolerance: percentage points by which accuracy may fall below its best before training
                stops. None: training isn't stopped.
            view: ``[i] -> image tensor``, as the model is evaluated.
            num_workers: worker processes of the loader.

        Returns:
            The stopping rule; None if nothing is held out.
        """
        indices = self.result.held_out.nonzero().squeeze(1).tolist()
        if not indices:
            return None
        pairs = LabelledImages(view, self.result.labels)
        loader: DataLoader[Any] = DataLoader(
            Subset(pairs, indices), batch_size=self.config.batch_size,
            num_workers=num_workers, generator=torch.Generator(),
        )  # fmt: skip
        return CleanAccuracyStopping(loader, tolerance)
