"""Estimating how much of a training set is poisoned, and under which labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.split.suspicion import Suspicion


@dataclass(frozen=True)
class SuspectedClass:
    """A class that an attack seems to aim at.

    Attributes:
        label: number of the class.
        confidence: probability that the class' suspicion is above what honest classes have, taking
            the suspicion's error for normal, in [0, 1].
        poisoned: estimated share of the class' samples that are poisoned, in [0, 1].
        found_by_clip_alone: whether CLIP's rank tells the poisoned samples, not how fast their
            labels were learned. A class with many labels that are wrong for another reason than an
            attack looks the same.
    """

    label: int
    confidence: float
    poisoned: float
    found_by_clip_alone: bool = False


@dataclass(frozen=True)
class PoisonEstimate:
    """The extent of an attack as a scan estimates it; no class and a rate of 0 without suspicion.

    The rate is the mean of ``probability`` of :class:`~cgd_wrap.split.suspicion.Suspicion`;
    ``examples/results/table.md`` compares estimated with true rates.

    Attributes:
        rate: estimated share of all samples that are poisoned, in [0, 1].
        classes: the suspected classes, by falling evidence.
    """

    rate: float
    classes: tuple[SuspectedClass, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PoisonEstimate:
        """Read an estimate from the values that :meth:`as_dict` gave."""
        return cls(values["rate"], tuple(SuspectedClass(**found) for found in values["classes"]))

    def as_dict(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {"rate": self.rate, "classes": [asdict(found) for found in self.classes]}


def estimate_poison(
    labels: Int[Tensor, "n"], suspicion: Suspicion, readable: Bool[Tensor, "n"]
) -> PoisonEstimate:
    """Estimate which share of the data, and of each suspected class, is poisoned.

    Args:
        labels: given labels.
        suspicion: suspicion of the samples and their classes.
        readable: False for samples that don't count.
    """
    evidence, probability = suspicion.evidence, suspicion.probability
    suspected = suspicion.suspected
    found = [
        SuspectedClass(
            label=label,
            confidence=0.5 * (1 + math.erf(float(evidence[label]) / math.sqrt(2))),
            poisoned=float(probability[(labels == label) & readable].mean()),
            found_by_clip_alone=bool(suspicion.found_by_clip_alone[label]),
        )
        for label in evidence.argsort(descending=True).tolist()
        if suspected[label]
    ]
    rate = float(probability[readable].mean()) if bool(readable.any()) else 0.0
    return PoisonEstimate(rate, tuple(found))
