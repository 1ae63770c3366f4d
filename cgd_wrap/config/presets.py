"""Sets of numbers: the authors', those for a model that is repaired, those for an untrained one.

What suits a repair keeps an untrained model from learning at all: there is nothing to unlearn yet,
so it is guided and made to unlearn more gently (``examples/results/demo.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgd_wrap.config.setting import UNKNOWN, Setting


def paper(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The authors' value of each setting that they have one of."""
    return {name: one.paper for name, one in settings.items() if one.paper is not UNKNOWN}


def repaired(settings: Mapping[str, Setting]) -> dict[str, float]:
    """For a model that knows the classes: the settings whose default depends on the model."""
    return {n: one.repaired for n, one in settings.items() if one.repaired is not None}


def from_scratch(settings: Mapping[str, Setting]) -> dict[str, float]:
    """The same for a model that doesn't know the classes yet."""
    return {n: one.from_scratch for n, one in settings.items() if one.from_scratch is not None}
