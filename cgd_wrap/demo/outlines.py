"""The ten shapes of the demo, as polygons."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float


@cache
def outlines(shape: str) -> list[Float[np.ndarray, "points 2"]]:
    """Return the polygon of a shape and, for ring and crescent, the polygon cut out of the first.

    Args:
        shape: One of `CLASSES`.

    Returns:
        Points (x, y), y downwards, within about the unit circle.
    """
    circle = _regular(40)
    star = _regular(10) * np.where(np.arange(10) % 2 == 0, 1.0, 0.45)[:, None]
    arm = 0.33
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
             (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]  # fmt: skip
    arrow = [(0, -1), (0.75, -0.1), (0.3, -0.1), (0.3, 0.95),
             (-0.3, 0.95), (-0.3, -0.1), (-0.75, -0.1)]  # fmt: skip
    table: dict[str, list[Any]] = {
        "circle": [circle * 0.9],
        "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8],
        "triangle": [_regular(3)],
        "star": [star],
        "cross": [cross],
        "ring": [circle, circle * 0.55],
        "crescent": [circle, circle * 0.85 + np.array([0.42, 0.0])],
        "heart": [_heart()],
        "hexagon": [_regular(6)],
        "arrow": [arrow],
    }
    return [np.asarray(outline, dtype=np.float64) for outline in table[shape]]


def _regular(corners: int) -> Float[np.ndarray, "corners 2"]:
    """A regular polygon in the unit circle, with a corner at the top."""
    turn = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    return np.stack([np.sin(turn), -np.cos(turn)], axis=1)


def _heart() -> Float[np.ndarray, "points 2"]:
    """The heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled."""
    turn = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([x, -y], axis=1) / 17
