"""Figures of a backdoored or defended model, and of the split that found the poison."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from cgd_wrap.functional import Split, auroc
from cgd_wrap.models.prediction import predict, predict_with_labels
from cgd_wrap.split.entropy_map import EntropyMap

__all__ = [
    "BackdoorFigures",
    "DetectionFigures",
    "attack_success_rate",
    "clean_accuracy",
    "detection_figures",
    "evaluate_backdoor",
    "natural_rate",
    "predict",
    "predict_with_labels",
    "robust_accuracy",
]

# --- backdoor figures ---------------------------------------------------------------------------


def clean_accuracy(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """Share of untriggered test images classified right, in [0, 1]; NaN if there are none."""
    return _share(predictions == labels)


def attack_success_rate(predictions: Int[Tensor, "n"], target: int) -> float:
    """Share of triggered images called the target, in [0, 1]; NaN if there are none.

    Args:
        predictions: for triggered test images whose true class is **not** the target.
        target: the target class of the attack.
    """
    return _share(predictions == target)


def robust_accuracy(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """Share of triggered images classified as their ORIGINAL label, in [0, 1]; NaN if none.

    Args:
        predictions: for triggered test images whose true class is **not** the target.
        labels: the images' labels before the attack.
    """
    return _share(predictions == labels)


def natural_rate(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"], target: int) -> float:
    """Share of UNtriggered non-target test images called the target, in [0, 1]; NaN if none.

    This is the floor of the attack success rate: a model without a backdoor makes such mistakes,
    too.
    """
    return _share(predictions[labels != target] == target)


@dataclass(frozen=True)
class BackdoorFigures:
    """Figures of a model that may have a backdoor, each in [0, 1].

    Attributes:
        clean_accuracy: share of all untriggered test images classified right.
        attack_success_rate: share of triggered non-target test images called the target.
        robust_accuracy: share of the same triggered images classified as their ORIGINAL label.
        natural_rate: share of UNtriggered non-target test images called the target; an attack
            whose success rate is near the natural rate has no success.
    """

    clean_accuracy: float
    attack_success_rate: float
    robust_accuracy: float
    natural_rate: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def evaluate_backdoor(
    model: nn.Module,
    clean_test: Any,
    triggered_test: Any,
    target: int,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> BackdoorFigures:
    """Measure a model on an untriggered and a triggered test set.

    Args:
        model: as in :func:`predict_with_labels`.
        clean_test: dataset or DataLoader of untriggered images with their labels.
        triggered_test: dataset or DataLoader of the same images with the trigger, and with their
            ORIGINAL labels, as :meth:`cgd_wrap.attacks.Attack.triggered` makes it; images of the
            target class are left out.
        target: the target class of the attack.
        batch_size: as in :func:`predict_with_labels`.
        device: as in :func:`predict_with_labels`.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "device": device}
    predictions, labels = predict_with_labels(model, clean_test, **options)
    triggered, originals = predict_with_labels(model, triggered_test, **options)
    attacked = originals != target
    return BackdoorFigures(
        clean_accuracy=clean_accuracy(predictions, labels),
        attack_success_rate=attack_success_rate(triggered[attacked], target),
        robust_accuracy=robust_accuracy(triggered[attacked], originals[attacked]),
        natural_rate=natural_rate(predictions, labels, target),
    )


# --- detection figures --------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectionFigures:
    """Figures of how well a split finds the poison, each in [0, 1]; NaN where undefined.

    Attributes:
        poison_left_in_clean: share of the poison that is in the clean split.
        poison_in_triggered: share of the poison that is in the triggered split (the recall).
        precision: share of the triggered split that is poison.
        auroc_clip: area under the ROC curve of ``clip_rank``, where high is suspicious.
        auroc_suspicious: area under the ROC curve of ``suspicious_rank``, where low is suspicious.
    """

    poison_left_in_clean: float
    poison_in_triggered: float
    precision: float
    auroc_clip: float
    auroc_suspicious: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def detection_figures(
    entropy_map: EntropyMap, split: Split, poisoned: Bool[Tensor, "n"]
) -> DetectionFigures:
    """Measure how well a split and the two ranks find the poison, which must be known.

    Args:
        entropy_map: entropy map of the training set; unreadable samples (NaN) are left out of both
            areas.
        split: split of the training set.
        poisoned: True for each poisoned sample.
    """
    known = ~(entropy_map.clip_rank.isnan() | entropy_map.suspicious_rank.isnan())
    return DetectionFigures(
        poison_left_in_clean=_share(split.clean[poisoned]),
        poison_in_triggered=_share(split.triggered[poisoned]),
        precision=_share(poisoned[split.triggered]),
        auroc_clip=auroc(entropy_map.clip_rank[known], poisoned[known]),
        auroc_suspicious=auroc(-entropy_map.suspicious_rank[known], poisoned[known]),
    )


def _share(hits: Bool[Tensor, "n"]) -> float:
    return float(hits.double().mean()) if hits.numel() else math.nan
