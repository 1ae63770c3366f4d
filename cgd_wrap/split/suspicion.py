"""Which classes an attack seems to aim at, and what that says of their samples and of others'.

The thresholds flag a fixed share of the data, poisoned or not. An attack aims at few classes, and
its samples gather in the corner of the entropy map where CLIP contradicts the label and it was
learned fast. Flagged samples of other classes, far from that corner, are ordinary ones; samples
of these classes that passed, but lie near it, may not be. Poison that was learned slowly is not in
that corner, or only some of it is, but it stands out if CLIP flatly denies its labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional import corner_weight
from cgd_wrap.split.two_kinds import probability_of_higher_kind

POWER = 4.0
CHANCE = 0.026
"""Suspicion of a class whose two ranks are independent, at ``sigma_triggered=0.1``:
``2 a / 5 - a^2`` with ``a = (1 - 0.9^5) / 5``. What is hard for one model is hard for the other,
too, so that honest classes stay below."""
TIP = 0.9  # of the corner: clip_rank (1 - suspicious_rank) beyond it is the tip
AT_THE_TIP, OTHERS = 0.001, 3.0  # share of an honest class; times the other classes' share,
MOST_AT_THE_TIP = 0.02  # but no more: an attack may aim at all classes
FLATLY = 0.99  # of clip_rank: what is beyond it, CLIP denies flatly
DENIED, DENIED_ELSEWHERE = 0.025, 2.5  # share of an honest class; times the next class' share
DENIAL_POWER = 8.0  # of clip_rank where it alone tells poison: honest samples have ranks all over
KNOWN = 0.2  # share of a class in CLIP's better half, from which CLIP knows the class
ENOUGH = 3.0  # standard errors
SURE, UNLIKELY = 0.9, 0.05  # probabilities of poison beyond which a sample's part is plain


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What the ranks say of classes and samples.

    Attributes:
        evidence: of :func:`evidence_of_attack`, by class, up to the largest label; where that
            isn't enough, of :func:`evidence_of_denial`, if it is.
        probability: of being poisoned, by sample; see :func:`probability_of_poison`.
        slow: suspected classes whose poison was not learned fast, or not all of it: CLIP flatly
            denies their labels, and ``clip_rank ** DENIAL_POWER`` tells the two kinds of samples
            with less doubt than the corner does.
        probability_at_most: the same by the place that says more, for a slow class that has poison
            in the corner, too; what may be either's poison is none to train on.
    """

    evidence: Float[Tensor, "classes"]
    probability: Float[Tensor, "n"]
    slow: Bool[Tensor, "classes"]
    probability_at_most: Float[Tensor, "n"]

    @property
    def suspected(self) -> Bool[Tensor, "classes"]:
        """Classes with more than ENOUGH evidence."""
        return self.evidence > ENOUGH

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, "n"],
        clip_rank: Float[Tensor, "n"],
        suspicious_rank: Float[Tensor, "n"],
        triggered: Bool[Tensor, "n"],
    ) -> Suspicion:
        """The arguments are those of :func:`evidence_of_attack`."""
        evidence = evidence_of_attack(labels, clip_rank, suspicious_rank, triggered)
        denial = evidence_of_denial(labels, clip_rank)
        fast, denied = evidence > ENOUGH, denial > ENOUGH
        by_corner = probability_of_poison(labels, clip_rank, suspicious_rank, fast)
        by_denial = _of_two_kinds(labels, clip_rank**DENIAL_POWER, denied)
        slow = denied & (~fast | (_doubt(labels, by_denial) < _doubt(labels, by_corner)))
        return cls(
            evidence=torch.where(denied & ~fast, denial, evidence),
            probability=torch.where(slow[labels], by_denial, by_corner),
            slow=slow,
            probability_at_most=torch.maximum(by_corner, by_denial * slow[labels]),
        )


def evidence_of_attack(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    triggered: Bool[Tensor, "n"],
) -> Float[Tensor, "classes"]:
    """By how many standard errors a class exceeds what an honest class may have.

    Of two measures the larger. One is a class' suspicion: the sum of
    ``(clip_rank (1 - suspicious_rank)) ** 4`` over its triggered samples, divided by its size. An
    honest class may have CHANCE; half of that if it stands out from the others by three times
    their median. On real CIFAR-10 we saw 0.17 and more for the target of strong attacks, 0.08 for
    BadNets at 1%, 0.035 for WaNet at 10%, and up to 0.006 for the other classes, with a CLIP of 47%
    zero-shot accuracy, too.

    The other is how many lie at the tip of the corner, as a Poisson number. An honest class may
    have AT_THE_TIP of its samples there, or OTHERS times the other classes' share; on real CIFAR-10
    we saw up to 0.0005 in honest classes, 0.0045 in the target of Blended at 1% and 0.08 of BadNets
    at 1%. It finds poison that was learned hardly faster than honest samples.

    A class that CLIP doesn't know (under a wrong name: 3 to 15% of it were in CLIP's better half)
    looks like an attack as soon as it is learned early. There the smaller counts if none is at the
    tip: such classes are far from it.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: the same under the suspicious model.
        triggered: members of the triggered split, as the thresholds found it.

    Returns:
        float64, one value per class, up to the largest label; ENOUGH makes it suspected.
    """
    weight = corner_weight(clip_rank, suspicious_rank, power=POWER).double() * triggered
    size = torch.bincount(labels).clamp(min=1)
    suspicion = torch.bincount(labels, weights=weight) / size
    error = torch.bincount(labels, weights=weight**2).sqrt() / size
    stands_out = suspicion > 3 * suspicion.median()
    honest = torch.where(stands_out, CHANCE / 2, CHANCE).double()
    by_suspicion = (suspicion - honest) / error.clamp(min=1e-12)
    corner = clip_rank * (1 - suspicious_rank)
    at_the_tip = _evidence_at_the_tip(labels, corner > TIP, size)
    return torch.where(
        _known(labels, clip_rank, size) | (at_the_tip > 0),
        torch.maximum(by_suspicion, at_the_tip),
        torch.minimum(by_suspicion, at_the_tip),
    )


def _evidence_at_the_tip(
    labels: Int[Tensor, "n"], tip: Bool[Tensor, "n"], size: Int[Tensor, "classes"]
) -> Float[Tensor, "classes"]:
    """The normal quantile of each class' number of samples at the tip; below 0 without any."""
    count = torch.bincount(labels[tip], minlength=len(size)).double()
    rest = len(labels) - size
    others = torch.where(rest > 0, (count.sum() - count) / rest.clamp(min=1), 1.0)
    expected = size * (OTHERS * others).clamp(AT_THE_TIP, MOST_AT_THE_TIP)
    return _beyond_chance(count, expected)


def evidence_of_denial(
    labels: Int[Tensor, "n"], clip_rank: Float[Tensor, "n"]
) -> Float[Tensor, "classes"]:
    """By how many standard errors CLIP flatly denies more of a class than of an honest one.

    It finds dirty-label poison that was learned no faster than honest samples: of rare poison, or
    of triggers that are hard to learn. An honest class may have DENIED of its samples among the
    hundredth that CLIP denies most, or DENIED_ELSEWHERE times what the next class has, so that two
    targets hide each other. On real CIFAR-10 we saw up to 0.024 and 1.4 times that in honest data,
    with CLIPs of 48 to 84% zero-shot accuracy and 10 or 20 classes, and 0.048 and 5 times or more
    in the target of five attacks, at 1 and 5%, that no other measure had found. A class that CLIP
    doesn't know shows nothing: under a wrong name, 0.054 and 1.7 times.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].

    Returns:
        float64, one value per class, up to the largest label; ENOUGH makes it suspected.
    """
    size = torch.bincount(labels).clamp(min=1)
    count = torch.bincount(labels[clip_rank > FLATLY], minlength=len(size)).double()
    first, second = (count / size).topk(2).values if len(size) > 1 else torch.ones(2)
    next_class = torch.where(count / size == first, second, first)
    expected = size * (DENIED_ELSEWHERE * next_class).clamp(min=DENIED)
    return torch.where(_known(labels, clip_rank, size), _beyond_chance(count, expected), -1.0)


def _known(
    labels: Int[Tensor, "n"], clip_rank: Float[Tensor, "n"], size: Int[Tensor, "classes"]
) -> Bool[Tensor, "classes"]:
    """Whether CLIP knows each class: enough of it is in CLIP's better half."""
    return torch.bincount(labels, weights=(clip_rank <= 0.5).double()) >= KNOWN * size


def _beyond_chance(
    count: Float[Tensor, "classes"], expected: Float[Tensor, "classes"]
) -> Float[Tensor, "classes"]:
    """The normal quantile of Poisson numbers; below 0 without any."""
    by_chance = torch.special.gammainc(count.clamp(min=1), expected)  # P(as many, or more)
    quantile = -torch.special.ndtri(by_chance.clamp(1e-16, 1 - 1e-16))
    return torch.where(count > 0, quantile, -1.0)


def probability_of_poison(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    suspected: Bool[Tensor, "classes"],
) -> Float[Tensor, "n"]:
    """Probability that each sample is poisoned, judged by where its class' samples lie.

    In each suspected class, a mixture of two kinds is fitted to
    ``clip_rank (1 - suspicious_rank)``; see :func:`probability_of_higher_kind`.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: the same under the suspicious model.
        suspected: classes with more than ENOUGH of :func:`evidence_of_attack`.

    Returns:
        float64 in [0, 1]; 0 in classes that aren't suspected, and for unreadable samples.
    """
    return _of_two_kinds(labels, clip_rank * (1 - suspicious_rank), suspected)


def _of_two_kinds(
    labels: Int[Tensor, "n"], place: Float[Tensor, "n"], suspected: Bool[Tensor, "classes"]
) -> Float[Tensor, "n"]:
    """Each suspected class' probabilities of the higher kind, by a place in [0, 1]; 0 elsewhere."""
    probability = torch.zeros(len(labels), dtype=torch.float64)
    for label in suspected.nonzero().squeeze(1):
        members = ((labels == label) & place.isfinite()).nonzero().squeeze(1)
        probability[members] = probability_of_higher_kind(place[members])
    return probability


def _doubt(labels: Int[Tensor, "n"], probability: Float[Tensor, "n"]) -> Float[Tensor, "classes"]:
    """Expected mistakes of calling a class' samples poisoned or not, as a share of its poison.

    On real CIFAR-10 it was smaller by CLIP's denial than by the corner for WaNet, BppAttack and
    FLIP at 5 and 10%, the label flip at 5% and Input-aware at 1 and 5%; in no row, where the corner
    told the kinds better.
    """
    mistakes = torch.bincount(labels, weights=torch.minimum(probability, 1 - probability))
    return mistakes / torch.bincount(labels, weights=probability).clamp(min=1)
