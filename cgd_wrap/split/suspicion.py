"""Which classes an attack seems to aim at, and how probably each of their samples is poisoned.

The thresholds of the split flag a fixed share of the data, poisoned or not. An attack aims at few
classes, and there are two places where its samples gather:

- The corner of the entropy map: CLIP contradicts the label, and the label was learned fast.
- Among the labels that look wrong to CLIP, however fast they were learned.

A class that has more samples in the corner than an honest class may have is suspected, and so is
one whose wrong-looking labels were learned fast, by themselves or with those of all classes, or are
many and of images of many classes.
In a suspected class, the place of each sample gives its probability of being poisoned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.split.class_figures import ClassFigures
from cgd_wrap.split.two_kinds import (
    expected_mistakes,
    probability_by_class,
    probability_of_poison,
)
from cgd_wrap.split.wrong_labels import Flow, WrongLabels

LEAST_RIGHT = 0.2  # share of a class: where more looks wrong, it is CLIP that is wrong
NORMAL_MAD = 1.4826  # standard deviations of a normal number in its median absolute deviation


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What the two ranks say of classes and samples.

    Attributes:
        evidence: by class, up to the largest label: standard errors by which the class exceeds what
            an honest class may have. It is :func:`evidence_in_corner` or
            :func:`evidence_of_speed`, whichever is higher; where that doesn't reach
            ``calibration.evidence_needed``, that of labels that look planted
            (:func:`evidence_of_wrong_labels` where :func:`looks_planted`, or
            :func:`evidence_together`).
        probability: by sample: probability of being poisoned, in [0, 1]; 0 in classes that aren't
            suspected, and for unreadable samples.
        found_by_clip_alone: by class: whether ``probability`` goes by CLIP's rank alone. So it does
            in a class with labels that look planted, if how fast labels were learned doesn't make
            the class suspected, or leaves more doubt about its samples than CLIP's rank does.
        probability_at_most: by sample: the higher one of the probability by the corner and, in
            classes that are found by CLIP alone, the probability by CLIP's rank. Such a class may
            have poison in both places, and none of it may be trained on as clean.
        looks_wrong: by class: whether it isn't suspected, though more of its labels look wrong
            than honest classes have. It may be mistakes, or poison that was learned slowly.
        figures: the figures of each class, from which the evidence was found.
        maps_labels: whether an attack gives several classes' images the labels of others, so that
            classes that aren't suspected may have its samples, too.
        calibration: the thresholds that were used.
    """

    evidence: Float[Tensor, "classes"]
    probability: Float[Tensor, "n"]
    found_by_clip_alone: Bool[Tensor, "classes"]
    probability_at_most: Float[Tensor, "n"]
    looks_wrong: Bool[Tensor, "classes"]
    figures: ClassFigures
    maps_labels: bool = False
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
        wrong: WrongLabels | None = None,
        calibration: Calibration = DEFAULT,
    ) -> Suspicion:
        """Judge classes and samples.

        Args:
            labels: given labels.
            clip_rank: rank of the label's NLL under CLIP, in (0, 1].
            suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
            triggered: members of the triggered split, as the thresholds alone found it.
            wrong: labels that look wrong to CLIP. Default: none.
            calibration: thresholds.
        """
        needed, wrong = calibration.evidence_needed, wrong or WrongLabels.none(labels)
        figures = ClassFigures.of(labels, clip_rank, suspicious_rank, triggered, wrong, calibration)
        by_speed = torch.maximum(
            evidence_in_corner(figures, figures, calibration),
            evidence_of_speed(figures, figures, calibration),
        )
        many_wrong = evidence_of_wrong_labels(figures, figures, calibration)
        flow = wrong.flow(labels)
        together = evidence_together(figures, flow, calibration)
        planted = looks_planted(figures, flow, calibration) | (together > needed)
        fast = by_speed > needed
        by_corner = probability_of_poison(labels, clip_rank, suspicious_rank, fast)
        by_clip = probability_by_class(
            labels, lambda some: clip_rank[some] ** calibration.rejection_power, planted
        )
        clearer = expected_mistakes(labels, by_clip) < expected_mistakes(labels, by_corner)
        by_clip_alone = planted & (~fast | clearer)
        probability = at_most = by_corner
        if bool(by_clip_alone.any()):
            alone = by_clip_alone[labels]
            probability = torch.where(alone, by_clip, by_corner)
            at_most = torch.maximum(by_corner, by_clip * alone)
        return cls(
            evidence=torch.where(planted & ~fast, torch.maximum(many_wrong, together), by_speed),
            probability=probability,
            found_by_clip_alone=by_clip_alone,
            probability_at_most=at_most,
            looks_wrong=(many_wrong > needed) & ~fast & ~planted,
            figures=figures,
            maps_labels=int((together > needed).sum()) > 1,
            calibration=calibration,
        )


def evidence_in_corner(
    own: ClassFigures, among: ClassFigures, calibration: Calibration = DEFAULT
) -> Float[Tensor, "*some classes"]:
    """By how many standard errors a class has more in the corner than an honest class may have.

    Two figures are looked at:

    - :attr:`ClassFigures.suspicion`. An honest class may have ``chance_suspicion``, and
      ``outstanding_suspicion`` if it stands out from the other classes.
    - The number of samples in the far corner, as a Poisson number. An honest class may have
      ``far_corner_share`` of its samples there, or ``far_corner_times`` the other classes' share,
      up to ``far_corner_most``. It finds poison that was learned hardly faster than honest samples.

    The larger one counts. A class that CLIP doesn't know looks like an attack as soon as it is
    learned early: there the smaller one counts, unless the far corner has more than its due.

    Args:
        own: figures of each class.
        among: figures of the classes that each class is compared with.
        calibration: thresholds.

    Returns:
        float64, one value per class, up to the largest label.
    """
    suspicion, error = own.suspicion, own.suspicion_error
    stands_out = suspicion > calibration.outstanding_times * among.suspicion.median()
    honest = torch.where(
        stands_out, calibration.outstanding_suspicion, calibration.chance_suspicion
    ).double()
    by_suspicion = (suspicion - honest) / error.clamp(min=1e-12)
    rest = among.size.sum() - among.size
    others = torch.where(rest > 0, (among.far.sum() - among.far) / rest.clamp(min=1), 1.0)
    expected = own.size * (calibration.far_corner_times * others).clamp(
        calibration.far_corner_share, calibration.far_corner_most
    )
    by_far_corner = _beyond_chance(own.far, expected)
    return torch.where(
        _is_known(own, calibration) | (by_far_corner > 0),
        torch.maximum(by_suspicion, by_far_corner),
        torch.minimum(by_suspicion, by_far_corner),
    )


def evidence_of_speed(
    own: ClassFigures, among: ClassFigures, calibration: Calibration = DEFAULT
) -> Float[Tensor, "*some classes"]:
    """By how many standard errors a class' wrong-looking labels were learned too fast.

    A label that is wrong by mistake is learned more slowly than the right ones of its class. Of a
    trigger it is learned as fast, or faster: :func:`~.class_figures.speed_in_class`, whose mean
    over n samples has a standard error of 1 / sqrt(12 n). An honest class may have a mean of 1/2,
    and of ``wrong_speed`` where more labels look wrong than in other classes.

    Arguments and result are those of :func:`evidence_in_corner`.
    """
    stands_out = own.wrong_share > _honest_share(among, calibration)
    honest = torch.where(stands_out, calibration.wrong_speed, 0.5).double()
    evidence = (own.speed / own.wrong.clamp(min=1) - honest) * (12 * own.wrong).sqrt()
    return torch.where(_is_known(own, calibration) & (own.wrong > 0), evidence, -1.0)


def evidence_of_wrong_labels(
    own: ClassFigures,
    among: ClassFigures,
    calibration: Calibration = DEFAULT,
    *,
    times: float = 0.0,
) -> Float[Tensor, "*some classes"]:
    """By how many standard errors more of a class' labels look wrong than of an honest class'.

    An honest class may have ``wrong_share`` of them, or ``wrong_spreads`` standard deviations more
    than most classes, or ``times`` the classes' median. It finds dirty-label poison that was
    learned no faster than honest samples: rare poison, and triggers that are hard to learn. A class
    that CLIP doesn't know shows nothing here.

    Arguments and result are those of :func:`evidence_in_corner`.
    """
    honest = _honest_share(among, calibration).clamp(min=times * among.wrong_share.median())
    evidence = _beyond_chance(own.wrong, own.size * own.beyond * honest)
    return torch.where(_is_known(own, calibration), evidence, -1.0)


def _honest_share(among: ClassFigures, calibration: Calibration) -> Float[Tensor, ""]:
    """Share of wrong labels that an honest class may have: by the classes' median and spread."""
    share = among.wrong_share
    spread = NORMAL_MAD * (share - share.median()).abs().median()
    return (share.median() + calibration.wrong_spreads * spread).clamp(calibration.wrong_share)


def _is_known(own: ClassFigures, calibration: Calibration) -> Bool[Tensor, "*some classes"]:
    """Classes of whose right-looking samples CLIP names enough."""
    right = own.size * (1 - own.wrong_share).clamp(min=LEAST_RIGHT)
    return own.named > calibration.known_by_name * right


def looks_planted(
    figures: ClassFigures, flow: Flow, calibration: Calibration = DEFAULT
) -> Bool[Tensor, "classes"]:
    """Classes whose wrong-looking labels aren't like mistakes: images of many classes come in.

    Mistakes go to and fro between classes, or come from one class that looks alike. A CLIP may know
    a class less well than others, and contradict up to ``wrong_times`` as many of its labels. And
    it may not know some of a class' images: it isn't sure then that they are of another class.

    Args:
        figures: figures of each class.
        flow: whence the images come.
        calibration: thresholds.
    """
    size = figures.size
    # Of two classes, all must come from the other one; so it is where one class is very large.
    ordered = size.sort(descending=True).values
    largest = torch.where(size == ordered[0], ordered[1:2].sum(), ordered[0])
    usual = largest / (size.sum() - size).clamp(min=1)
    from_many = flow.from_one <= (1.5 * usual).clamp(min=calibration.most_from_one)
    evidence = evidence_of_wrong_labels(
        figures, figures, calibration, times=calibration.wrong_times
    )
    enough = evidence > calibration.evidence_needed
    comes_in = flow.into > calibration.outflow_times * flow.out_at_most
    return enough & from_many & comes_in & _is_sure(figures, flow, calibration)


def evidence_together(
    figures: ClassFigures, flow: Flow, calibration: Calibration = DEFAULT
) -> Float[Tensor, "classes"]:
    """By how many standard errors wrong-looking labels are too many and, together, too fast.

    An attack that gives each class' images the next class' label leaves few samples in each. They
    come from one class, as mistakes do, and no class stands out. But mistakes are learned slowly:
    how fast these were is known by all classes together whose wrong-looking labels are mostly of
    one class. Counted are those classes of them where they are more than ``wrong_share``, and fast.

    Args:
        figures: figures of each class.
        flow: whence the images come.
        calibration: thresholds.
    """
    alike = flow.from_one > calibration.most_from_one
    counts = alike & _is_known(figures, calibration) & _is_sure(figures, flow, calibration)
    slow = calibration.wrong_speed
    total, fast = (sums[counts].sum() for sums in (figures.wrong, figures.speed))
    together = (fast / total.clamp(min=1) - slow) * (12 * total).sqrt()
    many = _beyond_chance(figures.wrong, figures.size * figures.beyond * calibration.wrong_share)
    counts = counts & (figures.speed > slow * figures.wrong)
    return torch.where(counts, torch.minimum(many, together), -1.0)


def _is_sure(
    figures: ClassFigures, flow: Flow, calibration: Calibration
) -> Bool[Tensor, "classes"]:
    """Classes of whose wrong-looking labels CLIP knows the right ones, within a standard error."""
    error = (12 * figures.wrong.clamp(min=1)).rsqrt()
    return flow.as_sure + error > calibration.least_as_sure


def _beyond_chance(
    count: Float[Tensor, "*some classes"], expected: Float[Tensor, "*some classes"]
) -> Float[Tensor, "*some classes"]:
    """The normal quantile of Poisson numbers; below 0 without any."""
    by_chance = torch.special.gammainc(count.clamp(min=1), expected)  # P(as many, or more)
    quantile = -torch.special.ndtri(by_chance.clamp(1e-16, 1 - 1e-16))
    return torch.where(count > 0, quantile, -1.0)
