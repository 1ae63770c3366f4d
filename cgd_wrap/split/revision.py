"""The split by thresholds, revised by what is suspected; and the clean samples kept out."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional import Split
from cgd_wrap.split.suspicion import SURE, UNLIKELY, Suspicion


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
    """Let a class' suspicion decide on its samples near the thresholds.

    In unsuspected classes, flagged samples with ``clip_rank (1 - suspicious_rank)`` up to the cut
    are clean. In suspected ones, clean samples that are likelier than ``poison_cut`` to be poisoned
    are mixed; but for a quarter, those farthest from the corner (of slow classes: those that CLIP
    denies least). Triggered samples that CLIP contradicts come back only if some other class is
    suspected: where none is, there may be an attack that the suspicious model was too slow for.

    Args:
        split: by the thresholds.
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: the same under the suspicious model.
        suspicion: of the same samples.
        corner_cut: in [0, 1]; None takes nothing back.
        poison_cut: in [0, 1]; None drops nothing.
        auto: also let the probability decide how much of a suspected class is
            triggered, however much that is: what is likelier than SURE is, and mixed samples
            that are less likely than UNLIKELY are clean.
    """
    suspected, probability = suspicion.suspected, suspicion.probability_at_most
    corner, aimed_at = clip_rank * (1 - suspicious_rank), suspected[labels]
    place = torch.where(suspicion.slow[labels], clip_rank, corner)
    back, out, more = (torch.zeros_like(split.clean) for _ in range(3))
    if corner_cut is not None:
        explained = (clip_rank <= 0.5) | suspected.any()
        flagged = split.mixed | (split.triggered & explained)
        back = flagged & ~aimed_at & (corner <= corner_cut)
    if poison_cut is not None:
        out = split.clean & aimed_at & (probability > poison_cut)
        for label in suspected.nonzero().squeeze(1):
            passed = (split.clean & (labels == label)).nonzero().squeeze(1)
            if len(passed):
                quarter = place[passed].kthvalue(math.ceil(len(passed) / 4)).values
                out[passed] &= place[passed] > quarter
    if auto:
        more = aimed_at & (probability > SURE) & (split.mixed | out)
        back |= split.mixed & aimed_at & (probability < UNLIKELY)
    return Split(
        clean=(split.clean | back) & ~out,
        triggered=(split.triggered & ~back) | more,
        mixed=((split.mixed & ~back) | out) & ~more,
    )


def hold_out(
    labels: Int[Tensor, "n"], clean: Bool[Tensor, "n"], fraction: float, seed: int
) -> Bool[Tensor, "n"]:
    """Choose the same share of every class' clean samples, never the last one of a class."""
    chosen = torch.zeros_like(clean)
    generator = torch.Generator().manual_seed(seed)
    for label in labels[clean].unique():
        members = (clean & (labels == label)).nonzero().squeeze(1)
        order = members[torch.randperm(len(members), generator=generator)]
        chosen[order[: min(round(fraction * len(members)), len(members) - 1)]] = True
    return chosen
