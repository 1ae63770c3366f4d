"""The scores of a control's images, and those of the data set that they are placed among."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional import members_by_class
from cgd_wrap.scan.control import Control
from cgd_wrap.scan.stored_logits import members_of
from cgd_wrap.split.class_figures import share_slower
from cgd_wrap.split.label_scores import LabelScores, scores_against_all


@dataclass(frozen=True, eq=False)
class ControlScores:
    """What both models say of a control's images.

    Attributes:
        family: position of the trigger in :data:`~cgd_wrap.scan.control.FAMILIES`.
        given: label that the image came with.
        label: wrong label that it got.
        clip: CLIP's scores against each class, as those of the samples' labels: float64 [m, C].
        suspicious: the suspicious model's score of the wrong label, float64.
    """

    family: Int[Tensor, "m"]
    given: Int[Tensor, "m"]
    label: Int[Tensor, "m"]
    clip: Float[Tensor, "m classes"]
    suspicious: Float[Tensor, "m"]

    @classmethod
    def of(cls, control: Control, *, reference_scores: bool) -> ControlScores:
        """Score every class by CLIP, and the wrong labels by the suspicious model.

        Args:
            control: logits of both models.
            reference_scores: as for :meth:`~cgd_wrap.split.label_scores.LabelScores.of`.
        """
        labels = control.plan.labels
        suspect = LabelScores.of(control.suspicious, labels, reference_scores=reference_scores)
        each, bad = [], dict(suspect.bad)
        for one in members_of(control.clip):
            parts = list(one.units())
            logits = torch.cat([values for _, values, _ in parts])
            each.append(scores_against_all(logits, reference_scores=reference_scores))
            bad |= {row: why for _, _, bad_here in parts for row, why in bad_here.items()}
        usable = torch.ones(len(labels), dtype=torch.bool)
        usable[list(bad)] = False
        return cls(
            control.plan.family[usable], control.sources[usable], labels[usable],
            torch.stack(each).amax(dim=0)[usable], suspect.score[usable],
        )  # fmt: skip


class Scored:
    """The scores of a data set's labels, among which others are placed.

    Args:
        labels: given labels.
        clip: CLIP's scores.
        suspicious: the suspicious model's scores.
        valid: False for unreadable samples.
        looks_wrong: samples whose label looks wrong to CLIP.

    Attributes:
        clip: CLIP's scores of the readable samples, ascending, float64.
        suspicious: the suspicious model's.
        right: the suspicious model's of each class' right-looking samples, ascending.
    """

    def __init__(
        self,
        labels: Int[Tensor, "n"],
        clip: Float[Tensor, "n"],
        suspicious: Float[Tensor, "n"],
        valid: Bool[Tensor, "n"],
        looks_wrong: Bool[Tensor, "n"],
    ) -> None:
        learned = suspicious.double()
        self.clip = clip[valid].double().sort().values
        self.suspicious = learned[valid].sort().values
        self.right = [
            learned[own].sort().values for own in members_by_class(labels, valid & ~looks_wrong)
        ]

    def speed(self, scores: Float[Tensor, "few"], classes: int) -> Float[Tensor, "few classes"]:
        """Share of each class' right-looking samples that were learned more slowly."""
        each = torch.full((len(scores), classes), 0.5, dtype=torch.float64)
        for label, own in enumerate(self.right):
            each[:, label] = share_slower(scores.double(), own)
        return each
