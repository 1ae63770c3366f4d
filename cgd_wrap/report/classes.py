"""Counting the split class by class, and choosing the samples to look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from cgd_wrap.functional import Split
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate


@dataclass(frozen=True)
class ClassRow:
    """The samples of a class in each part of the split, and what is suspected of the class.

    Attributes:
        label: number of the class.
        name: name of the class.
        total: number of samples with this label, unreadable samples included.
        clean: number of the class' samples in the clean split.
        triggered: number of the class' samples in the triggered split.
        mixed: number of the class' samples in the mixed split.
        share_overall: share that the class has in all readable samples, in [0, 1].
        share_triggered: share that the class has in the triggered split, in [0, 1].
        lift: ``share_triggered / share_overall``; 1 if the triggered split favours no class.
        suspected: whether an attack seems to aim at the class.
        confidence: confidence of the suspicion, in [0, 1]; 0 for classes that aren't suspected.
        poisoned: estimated share of the class' samples that are poisoned, in [0, 1].
    """

    label: int
    name: str
    total: int
    clean: int
    triggered: int
    mixed: int
    share_overall: float
    share_triggered: float
    lift: float
    suspected: bool
    confidence: float
    poisoned: float


def class_rows(
    split: Split,
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    estimate: PoisonEstimate,
) -> list[ClassRow]:
    """Count the split class by class.

    Args:
        split: split of the training set.
        labels: given labels, in [0, C).
        class_names: names of the classes, in the order of the labels.
        estimate: estimate of the poison.
    """
    number = len(class_names)
    counts = {
        name: torch.bincount(labels[getattr(split, name)], minlength=number).tolist()
        for name in ("clean", "triggered", "mixed")
    }
    total = torch.bincount(labels, minlength=number).tolist()
    readable = sum(sum(column) for column in counts.values())
    triggered = sum(counts["triggered"])
    suspects = {found.label: found for found in estimate.classes}
    rows = []
    for label, name in enumerate(class_names):
        clean, hits, mixed = (counts[key][label] for key in ("clean", "triggered", "mixed"))
        overall = (clean + hits + mixed) / max(readable, 1)
        share = hits / max(triggered, 1)
        lift = share / overall if overall else 0.0
        found = suspects.get(label)
        row = ClassRow(
            label, name, total[label], clean, hits, mixed, overall, share, lift,
            suspected=found is not None,
            confidence=found.confidence if found else 0.0,
            poisoned=found.poisoned if found else 0.0,
        )  # fmt: skip
        rows.append(row)
    return rows


def most_suspicious(entropy_map: EntropyMap, count: int = 100) -> list[int]:
    """Choose the samples with the highest ``clip_rank * (1 - suspicious_rank)``, highest first.

    Returns:
        Up to ``count`` indices; unreadable samples are left out.
    """
    score = entropy_map.clip_rank * (1 - entropy_map.suspicious_rank)
    order = torch.argsort(score.nan_to_num(nan=-1.0), descending=True, stable=True)
    return [int(index) for index in order[:count] if not score[index].isnan()]
