"""Writing the runs of ``reproduce.py`` as Markdown tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cgd_wrap.attacks.catalogue import ATTACKS

SETTING = ("dataset", "model", "clip", "class_names", "poison")  # a table for each combination
KEY = (*SETTING, "attack", "rate", "preset", "seed")
HEAD = (
    "attack", "rate", "method", "seeds", "CA", "ASR", "RA", "natural rate", "excess ASR",
    "clean-trained CA / ASR / RA", "poison in clean", "in triggered", "estimated poison",
    "suspected", "seconds",
)  # fmt: skip
FIGURES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """The settings by which a run is told from other runs."""
    return tuple(run[name] for name in KEY)


def read_runs(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Read all runs of several files."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def as_tables(runs: list[dict[str, Any]]) -> str:
    """Write a table for each setting, in the order in which the settings first appear."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        settings.setdefault(tuple(run[name] for name in SETTING), []).append(run)
    parts = []
    for (dataset, model, clip, class_names, poison), group in settings.items():
        title = f"### {dataset}, {model}, CLIP: {clip}"
        title += f", classes called {class_names}" if class_names else ""
        title += "" if poison == "random" else f", poison: {poison}"
        parts.append(f"{title}\n\n{as_table(group)}")
    return "\n\n".join(parts)


def as_table(runs: list[dict[str, Any]]) -> str:
    """Write a row per attack, rate and method: the mean over seeds, and half the range."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["attack"], run["rate"], run["preset"]), []).append(run)
    attacks, methods = [*ATTACKS, "clean"], list(dict.fromkeys(run["preset"] for run in runs))
    lines = [row(*HEAD), row(*["---"] * len(HEAD))]
    for attack, rate, method in sorted(
        groups, key=lambda key: (attacks.index(key[0]), -key[1], methods.index(key[2]))
    ):
        group = groups[attack, rate, method]
        suspects = {", ".join(run.get("suspected", [])) for run in group}
        seconds = sum(sum(run["seconds"].values()) for run in group) / len(group)
        lines.append(
            row(
                attack,
                f"{rate:g}",
                method,
                len(group),
                *(mean_of(group, "after", name) for name in FIGURES),
                mean_of(group, "natural_rate"),
                mean_of(group, "excess_attack_success_rate"),
                " / ".join(mean_of(group, "clean_trained", name) for name in FIGURES),
                mean_of(group, "detection", "poison_left_in_clean"),
                mean_of(group, "detection", "poison_in_triggered"),
                mean_of(group, "estimated_poison_rate"),
                "; ".join(sorted(suspects)),
                f"{seconds:.0f}",
            )
        )
    return "\n".join(lines)


def mean_of(group: list[dict[str, Any]], *path: str) -> str:
    """A figure's mean in percent, and half its range; empty if no run has the figure."""
    values = [100 * v for v in (value_at(run, *path) for run in group) if v is not None]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{spread}"


def value_at(run: dict[str, Any], *path: str) -> Any:
    value: Any = run
    for name in path:
        value = None if value is None else value.get(name)
    return value


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
