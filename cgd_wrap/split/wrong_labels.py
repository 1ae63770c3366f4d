"""Which labels look wrong to CLIP, by what it says of other classes' images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import members_by_class
from cgd_wrap.split.label_scores import (
    LabelScores,
    choosing_clip,
    compared,
    contradicting_most,
)

LEAST_LEAVING = 0.01  # share of images that is told from none by a few hundred of them


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """The labels that CLIP contradicts as firmly as it would if they were another class'.

    For each class CLIP is asked, of the images with other labels, how firmly it contradicts that
    they are of this class. A quarter of them is contradicted more firmly than some bound, and
    hardly any image that is of the class. Four times the labels beyond the bound are therefore
    about as many as are wrong: by a mistake, or by an attack.

    Attributes:
        looks_wrong: whether the label is contradicted beyond its class' bound.
        choice: CLIP's first choice of a class.
        bound: score of each class beyond which a label looks wrong, float64.
        leaving: share of each class' images that would look wrong under another label, and that
            CLIP takes for this class, float64.
        beyond: share of other classes' images beyond the bound.
        as_sure: how surely CLIP takes the images of each class' wrong-looking labels for another
            class, float64: share of other classes' images beyond the bound of which it is less
            sure. It is about 1/2 of wrong labels, and less if images are of the class, but unlike
            those that CLIP knows. It is 1/2, too, where there is nothing to compare.
    """

    looks_wrong: Bool[Tensor, "n"]
    choice: Int[Tensor, "n"]
    bound: Float[Tensor, "classes"]
    leaving: Float[Tensor, "classes"]
    beyond: float
    as_sure: Float[Tensor, "classes"]

    @classmethod
    def of(
        cls,
        scores: Sequence[LabelScores],
        labels: Int[Tensor, "n"],
        valid: Bool[Tensor, "n"],
        calibration: Calibration = DEFAULT,
    ) -> WrongLabels:
        """Compare each label's score with those of other classes' images.

        Args:
            scores: scores by each CLIP; of several, the one that contradicts a label most counts.
            labels: given labels.
            valid: False for unreadable samples.
            calibration: thresholds.
        """
        few = compared(len(labels))
        given, against = labels[few], torch.stack([one.against for one in scores]).amax(dim=0)
        bound = torch.full((against.shape[1],), torch.inf, dtype=torch.float64)
        for label in labels.unique().tolist():
            others = against[(given != label) & valid[few], label].double()
            if len(others):
                bound[label] = others.quantile(calibration.wrong_beyond)
        chosen = choosing_clip(scores)
        choice = torch.stack([one.choice for one in scores]).gather(0, chosen[None])[0]
        looks_wrong = valid & (contradicting_most(scores).double() > bound[labels])
        wrong = members_by_class(labels, looks_wrong)
        return cls(
            looks_wrong, choice, bound, _leaving(against, given, choice[few], valid[few], bound),
            1 - calibration.wrong_beyond,
            _as_sure(scores, chosen, wrong, few[valid[few]], labels, bound),
        )  # fmt: skip

    @classmethod
    def none(cls, labels: Int[Tensor, "n"]) -> WrongLabels:
        """No label looks wrong."""
        bound = torch.full((int(labels.max()) + 1,), torch.inf, dtype=torch.float64)
        nowhere = torch.zeros_like(labels, dtype=torch.bool)
        return cls(nowhere, labels, bound, torch.ones_like(bound), 1.0, torch.full_like(bound, 0.5))

    def flow(self, labels: Int[Tensor, "n"]) -> Flow:
        """Estimate where the images with wrong labels come from, by those that look wrong."""
        size = int(labels.max()) + 1
        given, seen = labels[self.looks_wrong], self.choice[self.looks_wrong]
        known = seen < size
        into = torch.bincount(given, minlength=size).double()
        out = torch.bincount(seen[known], minlength=size).double()
        pairs, counts = torch.stack([given, seen]).unique(dim=1, return_counts=True)
        most = torch.zeros(size, dtype=torch.float64)
        most.scatter_reduce_(0, pairs[0], counts.double(), "amax")
        seen_leaving = self.leaving[:size].clamp(min=LEAST_LEAVING)
        return Flow(
            into / self.beyond, out / seen_leaving, (out + 2 * (out + 1).sqrt()) / seen_leaving,
            most / into.clamp(min=1), self.as_sure[:size],
        )  # fmt: skip


def _as_sure(
    scores: Sequence[LabelScores],
    chosen: Int[Tensor, "n"],
    wrong: Sequence[Int[Tensor, "_"]],
    few: Int[Tensor, "k"],
    labels: Int[Tensor, "n"],
    bound: Float[Tensor, "classes"],
) -> Float[Tensor, "classes"]:
    """See :class:`WrongLabels`. A CLIP is compared with itself: one may be surer than another.

    Args:
        scores: scores by each CLIP.
        chosen: the CLIP that decides on each sample.
        wrong: samples of each class whose labels look wrong.
        few: readable samples whose scores against all classes are known.
        labels: given labels.
        bound: score of each class beyond which a label looks wrong.
    """
    as_sure = torch.full_like(bound, 0.5)
    given, rows = labels[few], torch.searchsorted(compared(len(labels)), few)
    for label, members in enumerate(wrong):
        areas = []
        others = given != label
        for position, one in enumerate(scores):
            own = one.sureness[members[chosen[members] == position]]
            beyond = one.sureness[few[others & (one.against[rows, label] > bound[label])]]
            if len(own) and len(beyond):
                mine = torch.arange(len(own) + len(beyond)) < len(own)
                areas += [functional.auroc(torch.cat([own, beyond]), mine)] * len(own)
        if areas:
            as_sure[label] = sum(areas) / len(areas)
    return as_sure


def _leaving(
    against: Float[Tensor, "k classes"],
    labels: Int[Tensor, "k"],
    choice: Int[Tensor, "k"],
    valid: Bool[Tensor, "k"],
    bound: Float[Tensor, "classes"],
) -> Float[Tensor, "classes"]:
    """See :class:`WrongLabels`; of a few samples whose scores against all classes are known."""
    classes = len(bound)
    beyond = (against > bound).double()
    own = beyond.gather(1, labels[:, None])[:, 0]
    elsewhere = (beyond.sum(dim=1) - own) / max(classes - 1, 1)
    seen = elsewhere * (choice == labels) * valid
    number = torch.bincount(labels[valid], minlength=classes).clamp(min=1)
    return torch.bincount(labels, seen, minlength=classes) / number


@dataclass(frozen=True, eq=False)
class Flow:
    """Whither and whence wrong labels lead, by class.

    Mistakes go to and fro, or from one class to one that looks like it. An attack brings images
    of all classes into one.

    Attributes:
        into: estimated number of the class' labels that are wrong.
        out: estimated number of the class' images that have other labels.
        out_at_most: what it may be, by two standard errors: of a class that CLIP knows badly, few
            images are seen under other labels.
        from_one: share of the wrong-looking labels whose images CLIP takes for one and the same
            class.
        as_sure: see :class:`WrongLabels`.
    """

    into: Float[Tensor, "classes"]
    out: Float[Tensor, "classes"]
    out_at_most: Float[Tensor, "classes"]
    from_one: Float[Tensor, "classes"]
    as_sure: Float[Tensor, "classes"]
