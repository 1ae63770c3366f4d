"""Splitting a training set by two ranks into clean, triggered and mixed; balancing its classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint masks over the user's dataset; unreadable samples are in none of the three.

    Attributes:
        clean: CLIP agrees with the label, and the label was not learned suspiciously fast.
        triggered: CLIP contradicts the label, or the label was learned suspiciously fast.
        mixed: samples that are neither clean nor triggered.
    """

    clean: Bool[Tensor, "n"]
    triggered: Bool[Tensor, "n"]
    mixed: Bool[Tensor, "n"]

    def __post_init__(self) -> None:
        overlap = (self.clean & self.triggered) | (self.mixed & (self.clean | self.triggered))
        if bool(overlap.any()):
            raise ValueError(f"splits overlap in {int(overlap.sum())} samples; they must not")

    def __len__(self) -> int:
        return self.clean.numel()

    def counts(self) -> dict[str, int]:
        """Number of samples in each mask, by name; ``"unreadable"`` counts samples in no mask."""
        found = {name: int(getattr(self, name).sum()) for name in ("clean", "triggered", "mixed")}
        return {**found, "unreadable": len(self) - sum(found.values())}

    def names(self) -> list[str]:
        """Name of the mask that each sample is in, in the dataset's order."""
        code = self.clean * 1 + self.triggered * 2 + self.mixed * 3
        words = ("unreadable", "clean", "triggered", "mixed")
        return [words[value] for value in code.tolist()]


def split_by_rank(
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    *,
    sigma_clean: float = 0.2,
    sigma_triggered: float = 0.1,
    sigma_slow: float | None = None,
) -> Split:
    """Cut the entropy map into clean, triggered and mixed samples (paper, section 3.2).

    clean: ``clip_rank <= 1 - sigma_clean`` and ``suspicious_rank >= sigma_clean``;
    triggered: ``clip_rank > 1 - sigma_triggered`` or ``suspicious_rank < sigma_triggered``;
    mixed: the rest. Samples whose ranks are NaN (unreadable ones) are in none of the three.

    With ``sigma_slow``, mixed samples of ``suspicious_rank >= sigma_slow`` are clean, too: they
    were learned too slowly for a backdoor, and CLIP's doubt is not grave.

    Args:
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        sigma_clean: sigma_1, in [0, 1).
        sigma_triggered: sigma_2, in [0, sigma_clean].
        sigma_slow: in [sigma_clean, 1], or None for the paper's split.

    Raises:
        ValueError: the thresholds are out of range, or would let the splits overlap.
    """
    if not 0 <= sigma_triggered <= sigma_clean < 1:
        raise ValueError(
            "expected 0 <= sigma_triggered <= sigma_clean < 1, got "
            f"sigma_clean={sigma_clean}, sigma_triggered={sigma_triggered}"
        )
    clean = (clip_rank <= 1 - sigma_clean) & (suspicious_rank >= sigma_clean)
    triggered = (clip_rank > 1 - sigma_triggered) | (suspicious_rank < sigma_triggered)
    if sigma_slow is not None:
        if not sigma_clean <= sigma_slow <= 1:
            raise ValueError(f"expected {sigma_clean=} <= sigma_slow <= 1, got {sigma_slow}")
        clean |= (suspicious_rank >= sigma_slow) & ~triggered & ~clip_rank.isnan()
    readable = ~(clip_rank.isnan() | suspicious_rank.isnan())
    triggered &= readable
    return Split(clean=clean, triggered=triggered, mixed=readable & ~clean & ~triggered)


def class_draws(
    counts: Int[Tensor, "classes"], growth: float | None = None
) -> Int[Tensor, "classes"]:
    """How often each class is drawn where all classes are filled up to the size of the largest.

    Args:
        counts: number of samples of each class.
        growth: largest number of draws in all, in multiples of the number of samples; at least 1.
            Classes are then filled up to the highest level, the same for all, that keeps to it.
            None: there is no such bound.

    Returns:
        Draws of each class, at least as many as it has samples; 0 for a class without samples.
    """
    there = counts > 0
    level = int(counts.max()) if counts.numel() else 0
    if growth is not None:
        most, lowest = int(growth * int(counts.sum())), 0
        while lowest < level:  # by bisection: the highest level whose draws are not too many
            middle = (lowest + level + 1) // 2
            if int(counts.clamp(min=middle)[there].sum()) <= most:
                lowest = middle
            else:
                level = middle - 1
    return torch.where(there, counts.clamp(min=level), torch.zeros_like(counts))


def draw_weight(
    counts: Int[Tensor, "classes"], growth: float | None = None
) -> Float[Tensor, "classes"]:
    """Weight of a draw of each class that makes up for the draws that ``growth`` forbids, float32.

    With it, every class counts as if it were drawn as often as the largest; 1 where it is. See
    :func:`class_draws` for the arguments.
    """
    draws = class_draws(counts, growth)
    weight = counts.max() / draws.clamp(min=1)
    return torch.where(draws > 0, weight, torch.ones_like(weight)).float()


def members_by_class(labels: Int[Tensor, "n"], chosen: Bool[Tensor, "n"]) -> list[Int[Tensor, "_"]]:
    """List the indices of each class' chosen samples, ascending, up to the largest label."""
    indices = chosen.nonzero().squeeze(1)
    given = labels[indices]
    counts = torch.bincount(given)
    # NumPy sorts small whole numbers by their digits, in a time that is linear in their number.
    short = given.numpy().astype(np.min_scalar_type(len(counts)))
    order = torch.from_numpy(np.argsort(short, kind="stable"))
    return list(indices[order].split(counts.tolist()))


def balanced_indices(
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    *,
    generator: torch.Generator,
    growth: float | None = None,
) -> Int[Tensor, "m"]:
    """List indices of clean samples, each class as often as :func:`class_draws` says.

    Without ``growth``, every class appears as often as the largest. Each clean sample appears at
    least once; smaller classes are filled up by drawing from their own samples with replacement.
    Ordered by class; classes without a clean sample stay out.
    """
    by_class = members_by_class(labels, clean)
    counts = torch.tensor([len(members) for members in by_class], dtype=torch.int64)
    parts = [torch.empty(0, dtype=torch.int64)]
    for members, wanted in zip(by_class, class_draws(counts, growth).tolist(), strict=True):
        if len(members):
            filling = torch.randint(len(members), (wanted - len(members),), generator=generator)
            parts += [members, members[filling]]
    return torch.cat(parts)


def corner_weight(
    clip_rank: Float[Tensor, "*some"], suspicious_rank: Float[Tensor, "*some"], *, power: float
) -> Float[Tensor, "*some"]:
    """Weight of each sample in the unlearning: ``(clip_rank * (1 - suspicious_rank)) ** power``.

    In [0, 1], float32. The weight is high in the corner of the entropy map, where both signs of
    poison agree: CLIP contradicts the label, and the label was learned fast. Power 0 weighs all
    samples alike, as the paper does. A sample whose rank is NaN weighs 0.
    """
    weight = (clip_rank * (1 - suspicious_rank)) ** power
    return torch.where(weight.isnan(), torch.zeros_like(weight), weight).float()
