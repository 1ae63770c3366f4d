"""The three-way split of a training set."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint masks over the user's dataset; an unreadable sample is in none of them.

    Attributes:
        clean: CLIP agrees with the label, and it was not learned suspiciously fast.
        triggered: CLIP contradicts the label, or it was learned suspiciously fast.
        mixed: neither.
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
        """Number of samples by name, and of those in none of the three as ``"unreadable"``."""
        found = {name: int(getattr(self, name).sum()) for name in ("clean", "triggered", "mixed")}
        return {**found, "unreadable": len(self) - sum(found.values())}

    def names(self) -> list[str]:
        """The split of each sample in words, in the dataset's order."""
        code = self.clean * 1 + self.triggered * 2 + self.mixed * 3
        words = ("unreadable", "clean", "triggered", "mixed")
        return [words[int(value)] for value in code.tolist()]
