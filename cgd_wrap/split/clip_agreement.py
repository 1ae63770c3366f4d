"""Measuring how far CLIPs agree with the given labels, and with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.functional import share_by_class
from cgd_wrap.split.label_scores import LabelScores


@dataclass(frozen=True)
class ClipAgreement:
    """How far one or several CLIPs agree with the given labels, and with each other.

    Attributes:
        names: name of each CLIP.
        agreement: for each CLIP, share of the samples whose label is its first choice, in [0, 1].
        consensus: share of the samples on which all CLIPs have the same first choice, in [0, 1];
            None for one CLIP.
        lowest_consensus: consensus in ``lowest_class``, in [0, 1]; None for one CLIP.
        lowest_class: number of the class with the lowest consensus; None for one CLIP.
    """

    names: tuple[str, ...]
    agreement: tuple[float, ...]
    consensus: float | None = None
    lowest_consensus: float | None = None
    lowest_class: int | None = None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        verdicts: Sequence[LabelScores],
        labels: Int[Tensor, "n"],
        valid: Bool[Tensor, "n"],
    ) -> ClipAgreement:
        """Measure the agreement on the samples that every CLIP could score.

        Args:
            names: name of each CLIP.
            verdicts: label scores of each CLIP.
            labels: given labels.
            valid: False for samples that don't count.
        """
        choices = torch.stack([verdict.choice for verdict in verdicts])[:, valid]
        labels = labels[valid]
        agreement = tuple((choices == labels).double().mean(dim=1).tolist())
        if len(verdicts) == 1:
            return cls(tuple(names), agreement)
        same = (choices == choices[0]).all(dim=0).double()
        share = share_by_class(same, labels)
        lowest = int(share.nan_to_num(nan=2.0).argmin())
        return cls(tuple(names), agreement, float(same.mean()), float(share[lowest]), lowest)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipAgreement:
        """Read the values that ``dataclasses.asdict`` gave, by way of JSON."""
        lists = {name: tuple(values[name]) for name in ("names", "agreement")}
        return cls(**{**values, **lists})
