"""The embedded demo: a backdoor planted and removed in a few minutes, without network or data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks import SIG, Attack, BadNets, Blended, LabelFlip
from cgd_wrap.config import CGDConfig
from cgd_wrap.demo.experiment import Experiment, Outcome, Recipe, transformed
from cgd_wrap.demo.shapes import ShapesDataset

CLIP = f"local-dir:{Path(__file__).parent / 'clip'}"
ATTACKS: dict[str, Attack] = {
    "badnets": BadNets(rate=0.1),
    "blended": Blended(rate=0.1),
    "sig": SIG(rate=0.8, delta=60 / 255),
    "flip": LabelFlip(rate=0.05),
}
TRAIN_SIZE, TEST_SIZE = 6000, 2000
TRAIN_SEED, TEST_SEED = 1, 2  # none of those that the embedded CLIP was trained on
RECIPE = Recipe(epochs=10, batch_size=128, widths=(8, 16, 32, 64))


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to.

    Attributes:
        attack: its name.
        outcome: all figures.
        files: what was written, by name.
        seconds: the whole demo.
    """

    attack: str
    outcome: Outcome
    files: dict[str, Path]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "attack": self.attack,
            "target": ATTACKS[self.attack].target,
            **self.outcome.as_dict(),
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
    """Draw the data, train a victim and a clean network, scan, repair, measure, report.

    Args:
        attack_name: one of ``ATTACKS``.
        folder: where the report goes.
        config: of the guard.
        seed: of the networks.
        progress: draw progress bars.
        say: told what happens, line by line.
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
    poisoned = attack.poison(experiment.train, experiment.train_transform)
    classes = experiment.train.classes
    say(
        f"Poisoning {len(poisoned.poisoned)} of them: {type(attack).__name__}, target class "
        f"'{classes[attack.target]}'."
    )
    victim = experiment.train_victim(poisoned, "victim")
    clean_data = transformed(experiment.train, experiment.train_transform)
    clean = experiment.train_victim(clean_data, "clean network")
    say("Guarding: scan, split, repair.")
    outcome = experiment.defend(attack, victim, clean, config or CGDConfig())
    is_poisoned = torch.zeros(len(poisoned), dtype=torch.bool)
    is_poisoned[poisoned.poisoned] = True
    files = outcome.guard.report(
        folder,
        poisoned=is_poisoned,
        figures={
            "before": outcome.before.as_dict(),
            "after": outcome.after.as_dict(),
            "clean-trained": outcome.clean_trained.as_dict(),
        },
        stage_seconds=outcome.seconds,
        title=f"cgd-wrap demo: {attack_name}",
    )
    return DemoResult(attack_name, outcome, files, time.perf_counter() - started)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """An RGB image as floats in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def augmented(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """:func:`to_tensor`, moved by up to 2 pixels each way, as one trains."""
    padded = F.pad(to_tensor(image)[None], (2, 2, 2, 2), mode="replicate")[0]
    down, right = torch.randint(0, 5, (2,)).tolist()
    return padded[:, down : down + image.height, right : right + image.width]


def as_table(result: DemoResult) -> str:
    """The result as text for a terminal: figures, split, and where the report lies."""
    outcome = result.outcome
    columns = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "natural_rate")
    rows = {
        "before (backdoored)": outcome.before,
        "after (guarded)": outcome.after,
        "clean-trained network": outcome.clean_trained,
    }
    lines = [f"{'':23}{'clean acc.':>12}{'attack succ.':>14}{'robust acc.':>13}{'natural':>9}"]
    for title, figures in rows.items():
        values = [100 * getattr(figures, name) for name in columns]
        lines.append(
            f"{title:23}"
            + "".join(f"{v:>{w}.1f}%" for v, w in zip(values, (11, 13, 12, 8), strict=True))
        )
    found, total = outcome.detection, len(outcome.guard.targets)
    lines += ["", f"{'split':11}{'samples':>9}{'share':>8}"]
    for name, count in outcome.split.items():
        if count:
            lines.append(f"{name:11}{count:>9}{100 * count / total:>7.1f}%")
    lines += [
        "",
        f"{100 * found.poison_in_triggered:.1f}% of the poison is in the triggered split, "
        f"{100 * found.poison_left_in_clean:.1f}% is left in the clean one; CLIP agrees with "
        f"{100 * outcome.zero_shot_agreement:.1f}% of the labels.",
        f"Entropy map: {result.files['figure']}",
        f"Report:      {result.files['page']}",
        f"{result.seconds:.0f} seconds in all.",
    ]
    return "\n".join(lines)
