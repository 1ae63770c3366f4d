"""The base class of attacks that poison images without changing a label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from cgd_wrap.attacks.poisoning import Attack


@dataclass(frozen=True)
class CleanLabelAttack(Attack):
    """An attack that poisons images of the target class only, whose labels are right anyway.

    The rate is a share of the target class.
    """

    def candidates(self, labels: Int[Tensor, "n"]) -> Int64[Tensor, "m"]:
        """Positions of the target class' samples."""
        return torch.nonzero(labels == self.target).flatten()

    def count(self, labels: Int[Tensor, "n"]) -> int:
        """Number of samples that are poisoned: the rate's share of the target class."""
        return round(self.rate * len(self.candidates(labels)))

    def poison_label(self, label: int) -> int:
        """Return a poisoned sample's own label, which the attack leaves as it is."""
        return label
