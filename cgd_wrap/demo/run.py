"""The embedded demo: a backdoor is planted and removed in minutes, without downloading anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgd_wrap.attacks import SIG, Attack, BadNets, Blended, LabelFlip
from cgd_wrap.config import CGDConfig
from cgd_wrap.demo.painting import SIDE
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.drill import Experiment, Outcome, Recipe
from cgd_wrap.drill.pictures import ToInput

CLIP = f"local-dir:{Path(__file__).parent / 'clip'}"
ATTACKS: dict[str, Attack] = {
    "badnets": BadNets(rate=0.1),
    "blended": Blended(rate=0.1),
    "sig": SIG(rate=0.8, delta=60 / 255),
    "flip": LabelFlip(rate=0.05),
}
TRAIN_SIZE, TEST_SIZE = 6000, 2000
TRAIN_SEED, TEST_SEED = 1, 2  # the embedded CLIP was trained on other seeds
RECIPE = Recipe(epochs=10, batch_size=128, widths=(8, 16, 32, 64))
to_tensor = ToInput((SIDE, SIDE))
augmented = ToInput((SIDE, SIDE), moved_by=1)


@dataclass(frozen=True)
class DemoResult:
    """The outcome of the demo.

    Attributes:
        attack: name of the attack.
        outcome: all figures.
        files: path of each file that was written, by name.
        seconds: duration of the whole demo.
    """

    attack: str
    outcome: Outcome
    files: dict[str, Path]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            **self.outcome.as_dict(),
            "attack": self.attack,
            "files": {name: str(path) for name, path in self.files.items()},
            "total_seconds": round(self.seconds, 1),
        }


def run_demo(
    attack_name: str = "badnets",
    *,
    folder: str | Path = "cgd-demo",
    config: CGDConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Run the demo: draw data, train a victim and a clean network, scan, repair, measure, report.

    Args:
        attack_name: one of ``ATTACKS``.
        folder: where the report goes.
        config: configuration of the guard.
        seed: seed of the networks.
        progress: draw progress bars.
        say: called with each line of text that says what happens.
    """
    started = time.perf_counter()
    attack = ATTACKS[attack_name]
    say(f"Drawing {TRAIN_SIZE} training and {TEST_SIZE} test images of ten shapes.")
    experiment = Experiment(
        train=ShapesDataset(TRAIN_SIZE, TRAIN_SEED),
        test=ShapesDataset(TEST_SIZE, TEST_SEED),
        train_transform=augmented,
        test_transform=to_tensor,
        clip=CLIP,
        recipe=RECIPE,
        seed=seed,
        progress=progress,
    )
    poisoned = experiment.poisoned(attack)
    classes = experiment.train.classes
    say(
        f"Poisoning {len(poisoned.poisoned)} of them: {type(attack).__name__}, target class "
        f"'{classes[attack.target]}'."
    )
    victim = experiment.train_victim(poisoned, "victim")
    clean = experiment.train_victim(experiment.clean(), "clean network")
    say("Guarding: scan, split, repair.")
    outcome = experiment.defend(attack, victim, clean, config or CGDConfig())
    files = outcome.report(folder, f"cgd-wrap demo: {attack_name}")
    return DemoResult(attack_name, outcome, files, time.perf_counter() - started)


def as_table(result: DemoResult) -> str:
    """Write the demo's result as text for a terminal: figures, split, and the report's path."""
    lines = [
        result.outcome.as_text(),
        f"Entropy map: {result.files['figure']}",
        f"Report:      {result.files['page']}",
        f"{result.seconds:.0f} seconds in all.",
    ]
    return "\n".join(lines)
