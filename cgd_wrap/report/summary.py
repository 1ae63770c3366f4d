"""What a split says about the classes, and which samples to look at first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cgd_wrap.functional import Split
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate


@dataclass(frozen=True)
class ClassRow:
    """One class in the split.

    Attributes:
        label: its number.
        name: its name.
        total: samples with this label, unreadable ones included.
        clean: of these in the clean split.
        triggered: in the triggered split.
        mixed: in the mixed one.
        share_overall: of all readable samples, in [0, 1].
        share_triggered: of the triggered split, in [0, 1].
        lift: ``share_triggered / share_overall``; 1 where the split has no favourite.
        suspected: an attack seems to aim at this class.
        confidence: of that, in [0, 1]; 0 for the others.
        poisoned: estimated share of its samples that are poisoned, in [0, 1].
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
        split: of the training set.
        labels: the given labels, in [0, C).
        class_names: C names.
        estimate: of the poison.
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
    """Indices by falling ``clip_rank * (1 - suspicious_rank)``; unreadable samples are left out."""
    score = entropy_map.clip_rank * (1 - entropy_map.suspicious_rank)
    order = torch.argsort(score.nan_to_num(nan=-1.0), descending=True, stable=True)
    return [int(index) for index in order[:count] if not score[index].isnan()]


def in_words(teachers: ClipAgreement | None, class_names: Sequence[str]) -> list[str]:
    """How far the CLIPs agree, a sentence each; none where it isn't known.

    Args:
        teachers: figures of the scan.
        class_names: C names.
    """
    if teachers is None:
        return []
    lines = [
        f"{name} agrees with {share:.1%} of the labels."
        for name, share in zip(teachers.names, teachers.agreement, strict=True)
    ]
    if teachers.lowest_class is not None:
        lines.append(
            f"All of them choose the same class for {teachers.consensus:.1%} of the samples; least "
            f"often for those labelled {class_names[teachers.lowest_class]!r}, "
            f"{teachers.lowest_consensus:.1%}."
        )
    return lines


def summarise(
    entropy_map: EntropyMap,
    split: Split,
    rows: Sequence[ClassRow],
    estimate: PoisonEstimate,
    *,
    figures: Mapping[str, Any] | None = None,
    stage_seconds: Mapping[str, float] | None = None,
    bad: Mapping[int, Sequence[str | None]] | None = None,
    warnings: Sequence[str] = (),
    teachers: ClipAgreement | None = None,
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """The report as one JSON value; what is not finite becomes null.

    Args:
        entropy_map: of the training set.
        split: of the same set.
        rows: see :func:`class_rows`.
        estimate: of the poison.
        figures: measured figures by name, or by name within "before", "after" and the like.
        stage_seconds: wall-clock seconds by stage.
        bad: samples that can't be used: index -> [reason, message, path].
        warnings: what seems wrong with CLIP, a message each.
        teachers: how far the CLIPs agree with the labels, and with each other.
        thresholds: the sigmas by name.
    """
    value = {
        "warnings": list(warnings),
        "teachers": None if teachers is None else asdict(teachers),
        "samples": len(split),
        "split": split.counts(),
        "thresholds": dict(thresholds),
        "suspected_target_classes": [found.label for found in estimate.classes],
        "estimated_poison_rate": estimate.rate,
        "classes": [asdict(row) for row in rows],
        "most_suspicious": most_suspicious(entropy_map),
        "figures": dict(figures or {}),
        "stage_seconds": dict(stage_seconds or {}),
        "bad": {index: list(why) for index, why in sorted((bad or {}).items())},
    }
    finite: dict[str, Any] = _finite(value)
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
