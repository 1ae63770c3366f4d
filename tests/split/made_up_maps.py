"""Entropy maps made by hand: honest ones, and some with poison in class 4."""

from __future__ import annotations

import torch

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.functional import split_by_rank
from cgd_wrap.split.class_figures import ClassFigures
from cgd_wrap.split.suspicion import Suspicion, evidence_in_corner
from cgd_wrap.split.wrong_labels import WrongLabels

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


def figures_of(labels: torch.Tensor, *ranks: torch.Tensor) -> ClassFigures:
    return ClassFigures.of(labels, *ranks, split_by_rank(*ranks).triggered)


def corner_evidence(labels: torch.Tensor, *ranks: torch.Tensor) -> torch.Tensor:
    figures = figures_of(labels, *ranks)
    return evidence_in_corner(figures, figures)


def wrong_labels(
    labels: torch.Tensor, poison: torch.Tensor, sources: tuple[int, ...] = tuple(range(4))
) -> WrongLabels:
    """Every fourth of some samples looks wrong, and CLIP takes it for one of the sources."""
    looks_wrong = torch.zeros(len(labels), dtype=torch.bool)
    looks_wrong[poison[::4]] = True
    choice = labels.clone()
    choice[poison] = torch.tensor(sources)[torch.arange(len(poison)) // 4 % len(sources)]
    some = torch.full((CLASSES,), 0.25, dtype=torch.float64)
    return WrongLabels(
        looks_wrong, choice, some, some, 0.25, as_sure=torch.full((CLASSES,), 0.5).double()
    )


def suspects(labels: torch.Tensor, *ranks: torch.Tensor) -> torch.Tensor:
    return corner_evidence(labels, *ranks) > ENOUGH


def suspicion_of(
    labels: torch.Tensor, *ranks: torch.Tensor, wrong: WrongLabels | None = None
) -> Suspicion:
    return Suspicion.of(labels, *ranks, split_by_rank(*ranks).triggered, wrong)


def first_of(labels: torch.Tensor, count: int, label: int = 4) -> torch.Tensor:
    """The first samples of a class, which the maps above make poison."""
    return (labels == label).nonzero().squeeze(1)[:count]


def names(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()
