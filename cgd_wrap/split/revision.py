"""Revising the split by the suspicion, and choosing the held-out part of the clean samples."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional import Split, members_by_class
from cgd_wrap.split.suspicion import Suspicion


def revised(
    split: Split,
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    suspicion: Suspicion,
    *,
    corner_cut: float | None,
    poison_cut: float | None,
    auto: bool = False,
) -> Split:
    """Revise the split by thresholds: let the suspicion decide on samples near the thresholds.

    - In classes that aren't suspected, flagged (mixed or triggered) samples with
      ``clip_rank (1 - suspicious_rank)`` up to ``corner_cut`` become clean. But if no class at all
      is suspected, triggered samples that CLIP contradicts stay triggered: there may be an attack
      that the suspicious model was too slow to learn. So they do if an attack maps labels.
    - In suspected classes, clean samples that are likelier poisoned than ``poison_cut`` become
      mixed. The quarter of the class' clean samples that lies farthest from the corner stays clean;
      if the poison was found by CLIP alone, the quarter that CLIP rejects least stays clean.
    - With ``auto``, samples of suspected classes that are surely poisoned become triggered, however
      many there are, and mixed samples that are hardly poisoned become clean.

    Args:
        split: the split by the thresholds alone.
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        suspicion: suspicion of the classes and samples; its calibration says from which probability
            on a sample is surely poisoned, and up to which a sample is hardly poisoned.
        corner_cut: in [0, 1]; None makes no flagged sample clean.
        poison_cut: in [0, 1]; None makes no clean sample mixed.
        auto: let the probability of poison decide which samples of suspected classes are triggered.
    """
    suspected, probability = suspicion.suspected, suspicion.probability_at_most
    calibration = suspicion.calibration
    corner, aimed_at = (1 - suspicious_rank).mul_(clip_rank), suspected[labels]
    back, out, more = (torch.zeros_like(split.clean) for _ in range(3))
    if corner_cut is not None:
        explained = (clip_rank <= 0.5) | (suspected.any() & (not suspicion.maps_labels))
        flagged = split.mixed | (split.triggered & explained)
        back = flagged & ~aimed_at & (corner <= corner_cut)
    if poison_cut is not None:
        out = split.clean & aimed_at & (probability > poison_cut)
        for label, passed in enumerate(members_by_class(labels, split.clean & aimed_at)):
            if len(passed):
                place = (clip_rank if suspicion.found_by_clip_alone[label] else corner)[passed]
                kept = math.ceil(len(passed) * calibration.always_clean)
                out[passed] &= place > place.kthvalue(kept).values
    if auto:
        more = aimed_at & (probability > calibration.sure_of_poison) & (split.mixed | out)
        back |= split.mixed & aimed_at & (probability < calibration.unlikely_poison)
    return Split(
        clean=(split.clean | back) & ~out,
        triggered=(split.triggered & ~back) | more,
        mixed=((split.mixed & ~back) | out) & ~more,
    )


def hold_out(
    labels: Int[Tensor, "n"], clean: Bool[Tensor, "n"], fraction: float, seed: int
) -> Bool[Tensor, "n"]:
    """Choose the same share of every class' clean samples, but never all samples of a class."""
    chosen = torch.zeros_like(clean)
    generator = torch.Generator().manual_seed(seed)
    for members in members_by_class(labels, clean):
        order = members[torch.randperm(len(members), generator=generator)]
        chosen[order[: max(min(round(fraction * len(members)), len(members) - 1), 0)]] = True
    return chosen
