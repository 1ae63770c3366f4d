"""The outcome of an experiment: figures before and after a repair, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from cgd_wrap.escaping import printable
from cgd_wrap.guard import CGDGuard
from cgd_wrap.metrics import BackdoorFigures, DetectionFigures

LEAST_SUCCESS = 0.5  # attack success rate on the victim, below which nothing can be concluded
COLUMNS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "natural_rate")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The figures of an experiment: the victim before and after its repair, and the split.

    Attributes:
        attack: name, target class and poison rate of the attack.
        before: figures of the victim.
        after: figures of the repaired victim.
        clean_trained: figures of a network like the victim, trained on clean data, to compare the
            repaired victim with: clean accuracy is the goal, attack success rate the natural error,
            robust accuracy the ceiling.
        detection: how well the split found the poison.
        split: number of samples in each part.
        suspected: names of the classes that the guard suspects.
        estimated_rate: share of all samples that the guard takes for poisoned, in [0, 1].
        zero_shot_agreement: share of the given labels that are CLIP's first choice.
        seconds: wall-clock seconds by stage.
        poisoned: True for each poisoned sample, bool [N].
        guard: the guard of the poisoned data set, whose model is the repaired victim.
    """

    attack: Mapping[str, Any]
    before: BackdoorFigures
    after: BackdoorFigures
    clean_trained: BackdoorFigures
    detection: DetectionFigures
    split: dict[str, int]
    suspected: list[str]
    estimated_rate: float
    zero_shot_agreement: float
    seconds: dict[str, float]
    poisoned: Bool[Tensor, "n"] = field(repr=False)
    guard: CGDGuard = field(repr=False)

    @property
    def excess_success(self) -> float:
        """The repaired model's attack success rate minus its natural rate, which is the floor."""
        return excess_success(self.after)

    @property
    def true_rate(self) -> float:
        """Share of all samples that are poisoned, in [0, 1]."""
        return float(self.poisoned.double().mean())

    def shortfalls(self) -> list[str]:
        """List in words where the defence fell short; empty if the defence held.

        The defence held if

        - the attack succeeds on under 1% of the images, or at most half a point more often than
          images without a trigger are taken for the target;
        - clean accuracy is at most 0.3 points below the clean-trained network's;
        - robust accuracy is at most 5 points below the clean-trained network's.

        If the attack failed on the victim already, only that is listed.
        """
        before, after, clean = self.before, self.after, self.clean_trained
        if not before.attack_success_rate >= LEAST_SUCCESS:
            return [
                f"the attack did not take: it succeeds on {before.attack_success_rate:.1%} of the "
                "images before the defence, so that nothing follows. Raise the rate, or train for "
                "longer"
            ]
        found = []
        if after.attack_success_rate >= 0.01 and self.excess_success > 0.005:
            found.append(
                f"the attack still succeeds on {after.attack_success_rate:.1%} of the images "
                f"(without a trigger {after.natural_rate:.1%} are taken for the target)"
            )
        if (lost := clean.clean_accuracy - after.clean_accuracy) > 0.003:
            found.append(f"clean accuracy is {100 * lost:.1f} points below a clean-trained model's")
        if (lost := clean.robust_accuracy - after.robust_accuracy) > 0.05:
            found.append(
                f"robust accuracy is {100 * lost:.1f} points below a clean-trained model's: "
                "triggered images are no longer taken for the target, but aren't recognised either"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON values; rates in [0, 1], times in seconds."""
        return {
            **self.attack,
            **compared(self.before, self.after, self.clean_trained),
            "split": self.split,
            "suspected": self.suspected,
            "estimated_poison_rate": self.estimated_rate,
            "true_poison_rate": self.true_rate,
            "detection": self.detection.as_dict(),
            "zero_shot_agreement": self.zero_shot_agreement,
            "shortfalls": self.shortfalls(),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def report(self, folder: str | Path, title: str) -> dict[str, Path]:
        """Write the guard's report, with the true poison and all figures in it.

        Args:
            folder: folder of the report; created if missing.
            title: heading of the page.
        """
        return self.guard.report(
            folder,
            poisoned=self.poisoned,
            figures={
                "before": self.before.as_dict(),
                "after": self.after.as_dict(),
                "clean-trained": self.clean_trained.as_dict(),
            },
            stage_seconds=self.seconds,
            title=title,
        )

    def as_text(self) -> str:
        """Figures and split as tables for a terminal, followed by the shortfalls."""
        rows = {
            "before (backdoored)": self.before,
            "after (guarded)": self.after,
            "clean-trained network": self.clean_trained,
        }
        lines = [f"{'':23}{'clean acc.':>12}{'attack succ.':>14}{'robust acc.':>13}{'natural':>9}"]
        for title, figures in rows.items():
            cells = zip(COLUMNS, (11, 13, 12, 8), strict=True)
            values = "".join(f"{100 * getattr(figures, name):>{w}.1f}%" for name, w in cells)
            lines.append(f"{title:23}{values}")
        lines += ["", f"{'split':11}{'samples':>9}{'share':>8}"]
        total = sum(self.split.values())
        for name, count in self.split.items():
            if count:
                lines.append(f"{name:11}{count:>9}{100 * count / total:>7.1f}%")
        found = self.detection
        suspected = ", ".join(map(printable, self.suspected)) or "none"
        lines += [
            "",
            f"{found.poison_in_triggered:.1%} of the poison is in the triggered split, "
            f"{found.poison_left_in_clean:.1%} is left in the clean one; CLIP agrees with "
            f"{self.zero_shot_agreement:.1%} of the labels.",
            f"Suspected classes: {suspected}; estimated poison: "
            f"{self.estimated_rate:.1%} of all samples (truth: {self.true_rate:.1%}).",
            *(f"Falls short: {text}." for text in self.shortfalls()),
        ]
        return "\n".join(lines)


def excess_success(figures: BackdoorFigures) -> float:
    """Attack success rate minus natural rate, in [-1, 1]."""
    return figures.attack_success_rate - figures.natural_rate


def compared(
    before: BackdoorFigures, after: BackdoorFigures, clean_trained: BackdoorFigures
) -> dict[str, Any]:
    """Compare a model before and after a defence, and a clean-trained model, as JSON values."""
    return {
        "before": before.as_dict(),
        "after": after.as_dict(),
        "natural_rate": after.natural_rate,
        "excess_attack_success_rate": excess_success(after),
        "clean_trained": clean_trained.as_dict(),
        "clean_trained_accuracy": clean_trained.clean_accuracy,
        "ra_ceiling": clean_trained.robust_accuracy,
    }
