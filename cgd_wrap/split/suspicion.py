"""Which classes an attack seems to aim at, and how probably each of their samples is poisoned.

The thresholds of the split flag a fixed share of the data, poisoned or not. An attack aims at few
classes, and there are two places where its samples gather:

- The corner of the entropy map: CLIP contradicts the label, and the label was learned fast.
- The end of CLIP's axis: CLIP rejects the label flatly, however fast the label was learned.

A class that has more samples in one of the two places than an honest class may have is suspected.
In a suspected class, the place of each sample gives its probability of being poisoned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import corner_weight
from cgd_wrap.split.two_kinds import probability_by_class


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What the two ranks say of classes and samples.

    Attributes:
        evidence: by class, up to the largest label: standard errors by which the class exceeds what
            an honest class may have. It is :func:`evidence_in_corner`; where that doesn't reach
            ``calibration.evidence_needed`` and :func:`evidence_of_rejection` does, the latter.
        probability: by sample: probability of being poisoned, in [0, 1]; 0 in classes that aren't
            suspected, and for unreadable samples.
        found_by_clip_alone: by class: whether ``probability`` goes by CLIP's rank alone. So it does
            in a class whose labels CLIP rejects flatly, if the corner doesn't make the class
            suspected, or leaves more doubt about its samples than CLIP's rank does.
        probability_at_most: by sample: the higher one of the probability by the corner and, in
            classes that are found by CLIP alone, the probability by CLIP's rank. Such a class may
            have poison in both places, and none of it may be trained on as clean.
        calibration: the thresholds that were used.
    """

    evidence: Float[Tensor, "classes"]
    probability: Float[Tensor, "n"]
    found_by_clip_alone: Bool[Tensor, "classes"]
    probability_at_most: Float[Tensor, "n"]
    calibration: Calibration = DEFAULT

    @property
    def suspected(self) -> Bool[Tensor, "classes"]:
        """Classes with enough evidence."""
        return self.evidence > self.calibration.evidence_needed

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, "n"],
        clip_rank: Float[Tensor, "n"],
        suspicious_rank: Float[Tensor, "n"],
        triggered: Bool[Tensor, "n"],
        calibration: Calibration = DEFAULT,
    ) -> Suspicion:
        """Judge classes and samples.

        Args:
            labels: given labels.
            clip_rank: rank of the label's NLL under CLIP, in (0, 1].
            suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
            triggered: members of the triggered split, as the thresholds alone found it.
            calibration: thresholds.
        """
        needed = calibration.evidence_needed
        in_corner = evidence_in_corner(labels, clip_rank, suspicious_rank, triggered, calibration)
        rejection = evidence_of_rejection(labels, clip_rank, calibration)
        fast, rejected = in_corner > needed, rejection > needed
        by_corner = probability_of_poison(labels, clip_rank, suspicious_rank, fast)
        by_clip = probability_by_class(
            labels, lambda some: clip_rank[some] ** calibration.rejection_power, rejected
        )
        by_clip_alone = rejected & (~fast | (_doubt(labels, by_clip) < _doubt(labels, by_corner)))
        probability = at_most = by_corner
        if bool(by_clip_alone.any()):
            alone = by_clip_alone[labels]
            probability = torch.where(alone, by_clip, by_corner)
            at_most = torch.maximum(by_corner, by_clip * alone)
        return cls(
            evidence=torch.where(rejected & ~fast, rejection, in_corner),
            probability=probability,
            found_by_clip_alone=by_clip_alone,
            probability_at_most=at_most,
            calibration=calibration,
        )


# --- what is measured of each class -------------------------------------------------------------


def corner_suspicion(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    triggered: Bool[Tensor, "n"],
    calibration: Calibration = DEFAULT,
) -> tuple[Float[Tensor, "classes"], Float[Tensor, "classes"]]:
    """Suspicion of each class, and its standard error; float64, up to the largest label.

    The suspicion is the sum of ``(clip_rank (1 - suspicious_rank)) ** corner_power`` over the
    triggered samples of the class, divided by the size of the class.
    """
    power = calibration.corner_power
    weight = corner_weight(clip_rank[triggered], suspicious_rank[triggered], power=power).double()
    size, given = _size(labels), labels[triggered]
    suspicion, squares = (
        torch.bincount(given, weights=each, minlength=len(size)) for each in (weight, weight**2)
    )
    return suspicion / size, squares.sqrt() / size


def far_corner_count(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    calibration: Calibration = DEFAULT,
) -> Float[Tensor, "classes"]:
    """Number of each class' samples in the far corner of the map."""
    far = clip_rank * (1 - suspicious_rank) > calibration.far_corner
    return _count(labels, far)


def rejection_count(
    labels: Int[Tensor, "n"], clip_rank: Float[Tensor, "n"], calibration: Calibration = DEFAULT
) -> Float[Tensor, "classes"]:
    """Number of each class' samples whose label CLIP rejects flatly."""
    return _count(labels, clip_rank > calibration.flat_rejection)


def better_half_count(
    labels: Int[Tensor, "n"], clip_rank: Float[Tensor, "n"]
) -> Float[Tensor, "classes"]:
    """Number of each class' samples in the better half of CLIP's ranks."""
    return _count(labels, clip_rank <= 0.5)


def _size(labels: Int[Tensor, "n"]) -> Int[Tensor, "classes"]:
    """Number of samples of each class, at least 1, so that it can be divided by."""
    return torch.bincount(labels).clamp(min=1)


def _count(labels: Int[Tensor, "n"], chosen: Bool[Tensor, "n"]) -> Float[Tensor, "classes"]:
    """Number of chosen samples of each class."""
    return torch.bincount(labels[chosen], minlength=int(labels.max()) + 1).double()


# --- evidence -----------------------------------------------------------------------------------


def evidence_in_corner(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    triggered: Bool[Tensor, "n"],
    calibration: Calibration = DEFAULT,
) -> Float[Tensor, "classes"]:
    """By how many standard errors a class has more in the corner than an honest class may have.

    Two figures are looked at:

    - :func:`corner_suspicion`. An honest class may have ``chance_suspicion``, and
      ``outstanding_suspicion`` if it stands out from the other classes.
    - :func:`far_corner_count`, as a Poisson number. An honest class may have ``far_corner_share``
      of its samples there, or ``far_corner_times`` the other classes' share, up to
      ``far_corner_most``. It finds poison that was learned hardly faster than honest samples.

    The larger one counts. A class that CLIP doesn't know looks like an attack as soon as it is
    learned early: there the smaller one counts, unless the far corner has more than its due.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        triggered: members of the triggered split, as the thresholds alone found it.
        calibration: thresholds.

    Returns:
        float64, one value per class, up to the largest label.
    """
    suspicion, error = corner_suspicion(labels, clip_rank, suspicious_rank, triggered, calibration)
    stands_out = suspicion > calibration.outstanding_times * suspicion.median()
    honest = torch.where(
        stands_out, calibration.outstanding_suspicion, calibration.chance_suspicion
    ).double()
    by_suspicion = (suspicion - honest) / error.clamp(min=1e-12)
    size = _size(labels)
    far = far_corner_count(labels, clip_rank, suspicious_rank, calibration)
    rest = len(labels) - size
    others = torch.where(rest > 0, (far.sum() - far) / rest.clamp(min=1), 1.0)
    expected = size * (calibration.far_corner_times * others).clamp(
        calibration.far_corner_share, calibration.far_corner_most
    )
    by_far_corner = _beyond_chance(far, expected)
    known = better_half_count(labels, clip_rank) >= calibration.known_by_rank * size
    return torch.where(
        known | (by_far_corner > 0),
        torch.maximum(by_suspicion, by_far_corner),
        torch.minimum(by_suspicion, by_far_corner),
    )


def evidence_of_rejection(
    labels: Int[Tensor, "n"], clip_rank: Float[Tensor, "n"], calibration: Calibration = DEFAULT
) -> Float[Tensor, "classes"]:
    """By how many standard errors CLIP rejects more of a class flatly than of an honest class.

    An honest class may have ``rejected_share`` of its samples there, or ``rejected_times`` the
    share of the class that comes next; so two targets hide each other. This evidence finds
    dirty-label poison that was learned no faster than honest samples: rare poison, and triggers
    that are hard to learn. A class that CLIP doesn't know shows nothing here.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        calibration: thresholds.

    Returns:
        float64, one value per class, up to the largest label.
    """
    size = _size(labels)
    count = rejection_count(labels, clip_rank, calibration)
    first, second = (count / size).topk(2).values if len(size) > 1 else torch.ones(2)
    next_class = torch.where(count / size == first, second, first)
    expected = size * (calibration.rejected_times * next_class).clamp(
        min=calibration.rejected_share
    )
    known = better_half_count(labels, clip_rank) >= calibration.known_by_rank * size
    return torch.where(known, _beyond_chance(count, expected), -1.0)


def _beyond_chance(
    count: Float[Tensor, "classes"], expected: Float[Tensor, "classes"]
) -> Float[Tensor, "classes"]:
    """The normal quantile of Poisson numbers; below 0 without any."""
    by_chance = torch.special.gammainc(count.clamp(min=1), expected)  # P(as many, or more)
    quantile = -torch.special.ndtri(by_chance.clamp(1e-16, 1 - 1e-16))
    return torch.where(count > 0, quantile, -1.0)


# --- probability --------------------------------------------------------------------------------


def probability_of_poison(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    suspected: Bool[Tensor, "classes"],
) -> Float[Tensor, "n"]:
    """Probability that each sample is poisoned, by its place in the corner of the map.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        suspected: classes with enough of :func:`evidence_in_corner`.

    Returns:
        float64 in [0, 1]; 0 in classes that aren't suspected, and for unreadable samples.
    """
    return probability_by_class(
        labels, lambda some: clip_rank[some] * (1 - suspicious_rank[some]), suspected
    )


def _doubt(labels: Int[Tensor, "n"], probability: Float[Tensor, "n"]) -> Float[Tensor, "classes"]:
    """Expected mistakes of calling a class' samples poisoned or not, as a share of its poison.

    On real CIFAR-10 the doubt by CLIP's rank was smaller than by the corner for WaNet, BppAttack
    and FLIP at 5 and 10%, the label flip at 5% and Input-aware at 1 and 5%; there was no attack for
    which it was smaller, and the corner told the two kinds better.
    """
    some, number = probability.nonzero().squeeze(1), int(labels.max()) + 1
    given, likely = labels[some], probability[some]
    mistakes, poison = (
        torch.bincount(given, weights=each, minlength=number)
        for each in (torch.minimum(likely, 1 - likely), likely)
    )
    return mistakes / poison.clamp(min=1)
