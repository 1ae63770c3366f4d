"""Making the parts of a guarded training from the result of a scan, all from one table."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from cgd_wrap.config import CGDConfig
from cgd_wrap.data import LabelledImages
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.randomness import plain_torch
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.criteria import Criterion
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.loaders import guarded_loader
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.sampler import BalancedSampler
from cgd_wrap.train.stopping import CleanAccuracyStopping
from cgd_wrap.train.tags import SampleTable

logger = escaped_logger(__name__)

LONG_EPOCH = 2.5  # times the dataset; no epoch gets there under the default settings


class Restarts:
    """Notices loaders that are made anew for each epoch, and so all begin at the first epoch.

    Whether they serve the epochs of one run can't be known: they may be of several runs. So they
    are left as they are, and a warning is given, once.
    """

    def __init__(self) -> None:
        self._samplers: deque[BalancedSampler] = deque(maxlen=2)
        self._said = False

    def notice(self, sampler: BalancedSampler) -> None:
        """Note a new loader's sampler, which hasn't been drawn from."""
        served_one = [s.epoch == 1 and s.epochs.run != 1 for s in self._samplers]
        if served_one == [True, True] and not self._said:
            self._said = True
            logger.warning(
                "Loaders are made anew for each epoch, and each begins at the first epoch: all "
                "epochs draw the same samples and blends, and no later epoch has fewer blends. "
                "Call guard.protect once, before the loop; or tell each loader its epoch, by "
                "loader.batch_sampler.sampler.set_epoch(epoch)."
            )
        self._samplers.append(sampler)


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
    _restarts: Restarts = field(default_factory=Restarts, init=False)

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

    def log_epoch_length(self) -> None:
        """Log how much longer than the dataset an epoch is; a warning where it is much longer."""
        drawn, given = len(self.epoch_indices), len(self.result.labels)
        bound = self.config.max_epoch_growth
        logger.log(
            logging.WARNING if drawn > LONG_EPOCH * given else logging.INFO,
            "An epoch of the guarded samples holds %d, %.1f times the dataset's %d: small classes "
            "are drawn more often (max_epoch_growth=%s), and weigh up to %.1f in the loss.",
            drawn, drawn / given, given, bound, float(self.table.tensors["class_weight"].max()),
        )  # fmt: skip

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
            TypeError: the loader can't be rebuilt, or the criterion not computed sample by sample.
            ValueError: the loader serves another dataset, was prepared by Accelerate, or blends
                labels; or the criterion is no mean or sum over samples.
        """
        logger.info(
            "Labels in guarded batches are tags. Mixup, CutMix and one-hot labels can't be made of "
            "them: turn these off. A training accuracy that compares tags with predictions is 0: "
            "take criterion.labels(targets) for them."
        )
        indices = self.epoch_indices.in_run_of(epochs)
        guarded = guarded_loader(loader, self.dataset.base, self.dataset, indices)
        batches: Any = guarded.batch_sampler
        self._restarts.notice(batches.sampler)
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
