"""What training needs of a scan: the samples of an epoch, and the loss that knows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.config import CGDConfig
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.exposure import Exposure
from cgd_wrap.train.loss import CGDLoss, Criterion, clean_share
from cgd_wrap.train.sampler import EpochIndices
from cgd_wrap.train.tags import SampleTable

MOST_REPEATS = 5  # of a sample, in an epoch


@dataclass(frozen=True, eq=False)
class Protection:
    """A scan's outcome under one configuration.

    Attributes:
        result: of the scan.
        labels: given labels, int64 [N].
        config: of the training, with what depends on the model decided.
    """

    result: ScanResult
    labels: Int[Tensor, "n"]
    config: CGDConfig

    @cached_property
    def table(self) -> SampleTable:
        """What the loss knows of each sample; every loss shares it."""
        return sample_table(self.result, self.labels, self.config)

    @property
    def epoch_indices(self) -> EpochIndices:
        """Which samples an epoch holds."""
        split, config = self.result.split, self.config
        poison = split.triggered & (self.result.poison_probability > 0.5)
        times = (split.triggered | (split.mixed & config.keep_mixed)).long()
        times[poison] = repeats(int(poison.sum()), len(poison), config.poison_oversampling)
        return EpochIndices(
            labels=self.labels,
            clean=split.clean & ~self.result.held_out,
            times=times,
            seed=config.seed,
            exposure=self._exposure(),
        )

    def _exposure(self) -> Exposure | None:
        config = self.config
        if not config.exposure_rate or not config.exposure_strength:
            return None
        assert config.early_exposure is not None
        table = self.table.tensors
        return Exposure(
            weight=table["triggered_weight"] * table["triggered"],
            rate=config.exposure_rate, strength=config.exposure_strength,
            epochs=config.exposure_epochs, early=config.early_exposure, late=config.late_exposure,
            tone=config.tone_exposure,
        )  # fmt: skip

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion; the guidance counts as much as CLIP has earned by its agreement."""
        share = self.result.guidance_share if self.config.guidance_by_agreement else 1.0
        assert self.config.guidance_weight is not None
        config = self.config.replace(guidance_weight=self.config.guidance_weight * share)
        clean = clean_share(self.table, self.epoch_indices.of(0))
        return CGDLoss(self.table, clean, config, criterion)


def repeats(count: int, size: int, share: float) -> int:
    """How often each of ``count`` samples has to appear to be about a share of ``size``.

    At least once, and at most MOST_REPEATS times: so few images are soon known by heart.
    """
    return min(max(round(share * size / max(count, 1)), 1), MOST_REPEATS)


def sample_table(result: ScanResult, labels: Int[Tensor, "n"], config: CGDConfig) -> SampleTable:
    """What the loss needs to know of each sample.

    Args:
        result: of the scan.
        labels: given labels.
        config: how triggered samples are weighed, and whether the teacher doubts their labels.
    """
    ranks, triggered, teacher = result.entropy_map, result.split.triggered, result.teacher
    weight = functional.corner_weight(
        ranks.clip_rank, ranks.suspicious_rank, power=config.corner_power
    )
    doubt = None
    if config.doubt_labels:
        given = labels[triggered]
        # A clean-label attack's samples are poisoned, but their labels are right.
        rejected = 1 - teacher.float().softmax(dim=1).gather(1, given[:, None]).squeeze(1)
        doubt = weight.clone()
        doubt[triggered] = torch.maximum(
            weight[triggered], result.poison_probability[triggered] * rejected
        )
        # Poison that only CLIP finds is not in the corner.
        found = [one.label for one in result.poison_estimate.classes if one.found_by_clip_alone]
        weight = torch.where(torch.isin(labels, labels.new_tensor(found)), doubt, weight)
        teacher = functional.doubted_teacher(teacher, given, doubt[triggered])
    return SampleTable(
        labels=labels,
        clean=result.split.clean,
        triggered=triggered,
        triggered_weight=weight,
        guidance_weight=doubt,
        teacher=teacher,
    )
