"""Sets of numbers: the authors', those for a model that is repaired, those for an untrained one.

What suits a repair keeps an untrained model from learning at all: there is nothing to unlearn yet,
so it is guided and made to unlearn more gently (``examples/results/demo.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgd_wrap.config.setting import TRAINING, UNKNOWN, Setting


def paper(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The authors' value of each setting that they have one of."""
    return {name: one.paper for name, one in settings.items() if one.paper is not UNKNOWN}


def repaired(settings: Mapping[str, Setting]) -> dict[str, float]:
    """For a model that knows the classes: the settings whose default depends on the model."""
    return {n: one.repaired for n, one in settings.items() if one.repaired is not None}


def from_scratch(settings: Mapping[str, Setting]) -> dict[str, float]:
    """The same for a model that doesn't know the classes yet."""
    return {n: one.from_scratch for n, one in settings.items() if one.from_scratch is not None}


def for_training(
    settings: Mapping[str, Setting], changes: Mapping[str, Any], has_accelerator: bool
) -> dict[str, Any]:
    """The changes, once it has been checked that a training after the scan heeds all of them.

    Args:
        settings: all settings by name.
        changes: new values by name, as given to :meth:`CGDGuard.fit`.
        has_accelerator: whether the user's accelerator, not the configuration, says the precision.

    Raises:
        ValueError: some names are no settings, or a training doesn't read them.
    """
    unknown = sorted(set(changes) - {*settings, "calibration"})
    made = sorted(
        name for name in set(changes) - set(unknown)
        if name == "calibration" or settings[name].stage not in TRAINING
    )  # fmt: skip
    faults = []
    if unknown:
        possible = sorted(name for name, one in settings.items() if one.stage in TRAINING)
        faults.append(f"there are no settings {unknown}; a training has {possible}")
    if made:
        faults.append(
            f"{made} concern the scan and the split, which are made already: pass them in "
            "CGDGuard(config=CGDConfig(...)), and call scan() again"
        )
    if has_accelerator and "mixed_precision" in changes:
        faults.append(
            "mixed_precision is the accelerator's, which this guard was given: set it there"
        )
    if faults:
        raise ValueError(f"fit: {'; '.join(faults)}")
    return dict(changes)
