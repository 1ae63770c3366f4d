"""What is counted in each class of a data set, to tell a class that an attack aims at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import corner_weight, members_by_class
from cgd_wrap.split.wrong_labels import WrongLabels

ENOUGH = 2000  # samples of a class, on average: the area is then known to 0.01
NAMES = ("weight", "squares", "far", "named", "wrong", "speed")


@dataclass(frozen=True, eq=False)
class ClassFigures:
    """Sums over the samples of each class, float64, up to the largest label.

    Attributes:
        size: number of samples, at least 1, so that it can be divided by.
        weight: sum of ``(clip_rank (1 - suspicious_rank)) ** corner_power`` over triggered samples.
        squares: sum of the squares of these weights.
        far: number of samples in the far corner of the map.
        named: number of right-looking samples whose label is CLIP's first choice.
        wrong: number of samples whose label looks wrong to CLIP, as
            :class:`~cgd_wrap.split.wrong_labels.WrongLabels` says.
        speed: sum over these of :func:`speed_in_class`.
        beyond: share of other classes' images that would look as wrong.
    """

    size: Float[Tensor, "*some classes"]
    weight: Float[Tensor, "*some classes"]
    squares: Float[Tensor, "*some classes"]
    far: Float[Tensor, "*some classes"]
    named: Float[Tensor, "*some classes"]
    wrong: Float[Tensor, "*some classes"]
    speed: Float[Tensor, "*some classes"]
    beyond: float = 1.0

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, "n"],
        clip_rank: Float[Tensor, "n"],
        suspicious_rank: Float[Tensor, "n"],
        triggered: Bool[Tensor, "n"],
        wrong: WrongLabels | None = None,
        calibration: Calibration = DEFAULT,
    ) -> ClassFigures:
        """Count in each class.

        Args:
            labels: given labels.
            clip_rank: rank of the label's NLL under CLIP, in (0, 1].
            suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
            triggered: members of the triggered split, as the thresholds alone found it.
            wrong: labels that look wrong. Default: none.
            calibration: thresholds.
        """
        wrong = wrong or WrongLabels.none(labels)
        size = torch.bincount(labels).clamp(min=1).double()
        each = figures_of_samples(
            clip_rank, suspicious_rank, triggered, wrong.looks_wrong,
            speed_in_class(labels, suspicious_rank, wrong.looks_wrong),
            (wrong.choice == labels) & ~wrong.looks_wrong, calibration,
        )  # fmt: skip
        sums = {
            name: torch.bincount(labels[one], minlength=len(size)).double()
            if one.dtype == torch.bool
            else torch.bincount(labels, one, minlength=len(size))
            for name, one in zip(NAMES, each, strict=True)
        }
        return cls(size, **sums, beyond=wrong.beyond)

    def with_more(
        self, number: Float[Tensor, "classes"], sums: Float[Tensor, "*some classes figures"]
    ) -> ClassFigures:
        """The figures if each class had more samples, one class at a time.

        Args:
            number: how many more samples each class has.
            sums: sums over them of :func:`figures_of_samples`.
        """
        more = {name: getattr(self, name) + sums[..., place] for place, name in enumerate(NAMES)}
        return replace(self, size=(self.size + number).expand(sums.shape[:-1]), **more)

    @property
    def wrong_share(self) -> Float[Tensor, "*some classes"]:
        """Estimated share of a class' labels that are wrong."""
        return self.wrong / self.size / self.beyond

    @property
    def suspicion(self) -> Float[Tensor, "*some classes"]:
        """Mean weight of a class' samples: how much of it lies in the corner of the map."""
        return self.weight / self.size

    @property
    def suspicion_error(self) -> Float[Tensor, "*some classes"]:
        """Standard error of :attr:`suspicion`."""
        return self.squares.sqrt() / self.size


def figures_of_samples(
    clip_rank: Float[Tensor, "*some"],
    suspicious_rank: Float[Tensor, "*some"],
    triggered: Bool[Tensor, "*some"],
    looks_wrong: Bool[Tensor, "*some"],
    speed: Float[Tensor, "*some"],
    named: Bool[Tensor, "*some"],
    calibration: Calibration = DEFAULT,
) -> Iterator[Shaped[Tensor, "*some"]]:
    """What each sample adds to the figures of its class, one after another in order of ``NAMES``.

    Booleans are counted, float64 numbers are added up. Arguments are those of
    :meth:`ClassFigures.of`, the labels that look wrong, the speed of :func:`speed_in_class` (0 for
    right-looking ones), and the right-looking labels that are CLIP's first choice.
    """
    weight = corner_weight(clip_rank, suspicious_rank, power=calibration.corner_power).double()
    weight *= triggered
    yield weight
    yield weight**2
    del weight
    yield clip_rank * (1 - suspicious_rank) > calibration.far_corner
    yield named
    yield looks_wrong
    yield speed


def speed_in_class(
    labels: Int[Tensor, "n"], suspicious_rank: Float[Tensor, "n"], looks_wrong: Bool[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Share of its class' right-looking samples that were learned more slowly than a sample.

    Their mean over wrong-looking samples is the area under a ROC curve (Mann and Whitney's U,
    normalised): 1/2 where being learned fast has nothing to do with looking wrong.

    Args:
        labels: given labels.
        suspicious_rank: rank of the label's NLL under the suspicious model.
        looks_wrong: samples whose label looks wrong to CLIP.

    In large classes, a seeded sample of the right-looking ones is compared with.

    Returns:
        float64 in [0, 1], with 1/2 where a class has no right-looking sample; 0 for samples whose
        label doesn't look wrong.
    """
    speed = torch.zeros(len(labels), dtype=torch.float64)
    compared = ~looks_wrong & ~suspicious_rank.isnan()
    enough = ENOUGH * (int(labels.max()) + 1) / len(labels)
    if enough < 1:
        compared &= torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < enough
    right = members_by_class(labels, compared)
    for label, members in enumerate(members_by_class(labels, looks_wrong)):
        if len(members):
            own = suspicious_rank[right[label]] if label < len(right) else suspicious_rank[:0]
            speed[members] = share_slower(suspicious_rank[members], own.sort().values)
    return speed


def share_slower(ranks: Float[Tensor, "m"], ordered: Float[Tensor, "k"]) -> Float[Tensor, "m"]:
    """Share of some samples that are above each of the ranks, ties by half; 1/2 without any."""
    if not len(ordered):
        return torch.full_like(ranks, 0.5, dtype=torch.float64)
    before, after = (torch.searchsorted(ordered, ranks, right=one) for one in (False, True))
    return 1 - (before + after).double() / 2 / len(ordered)
