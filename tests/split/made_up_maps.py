"""Entropy maps made by hand: honest ones, and some with poison in class 4."""

from __future__ import annotations

import torch

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.functional import split_by_rank
from cgd_wrap.split.suspicion import Suspicion, evidence_in_corner

PER_CLASS, CLASSES = 1000, 10
ENOUGH = DEFAULT.evidence_needed


def honest_map(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels and two ranks, alike in every class: what is hard for one is hard for the other."""
    generator = torch.Generator().manual_seed(seed)
    size = PER_CLASS * CLASSES
    hardness = torch.rand(size, generator=generator, dtype=torch.float64)
    scores = hardness + 0.4 * torch.rand(2, size, generator=generator, dtype=torch.float64)
    ranks = (scores.argsort(1).argsort(1) + 1).double() / size
    return torch.arange(size) % CLASSES, ranks[0], ranks[1]


def attacked_map(count: int, targets: tuple[int, ...] = (4,)):
    """The same, with ``count`` samples of each target in the corner."""
    labels, clip_rank, suspicious_rank = honest_map()
    for target in targets:
        poison = (labels == target).nonzero().squeeze(1)[:count]
        clip_rank[poison] = 0.9 + 0.1 * torch.rand(count, dtype=torch.float64)
        suspicious_rank[poison] = 0.1 * torch.rand(count, dtype=torch.float64)
    return labels, clip_rank, suspicious_rank


def denied_map(count: int, rank: float = 0.9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``count`` samples of class 4 that CLIP denies flatly, learned as slowly as ``rank`` says."""
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:count]
    clip_rank[poison] = torch.linspace(0.9901, 1.0, count, dtype=torch.float64)
    suspicious_rank[poison] = rank
    return labels, clip_rank, suspicious_rank


def partly_fast_map(count: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``count`` samples of class 4 that CLIP denies; a fifth was learned fast, the others not."""
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:count]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    clip_rank[poison] = torch.linspace(0.93, 1.0, count, dtype=torch.float64)[order]
    suspicious_rank[poison] = torch.linspace(0.3, 0.9, count, dtype=torch.float64)
    suspicious_rank[poison[: count // 5]] = 0.02
    return labels, clip_rank, suspicious_rank


def suspects(labels: torch.Tensor, *ranks: torch.Tensor) -> torch.Tensor:
    return evidence_in_corner(labels, *ranks, split_by_rank(*ranks).triggered) > ENOUGH


def suspicion_of(labels: torch.Tensor, *ranks: torch.Tensor) -> Suspicion:
    return Suspicion.of(labels, *ranks, split_by_rank(*ranks).triggered)


def names(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()
