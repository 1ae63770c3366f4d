"""The demo's data: small pictures of ten shapes, drawn on the spot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.demo.painting import CLASSES, COLOURS, SIDE, TEXTURES, Scene, paint

RESERVED_SEEDS = range(900_000, 901_000)
"""Seeds of the data that the embedded CLIP was trained and measured on: draw with other seeds."""


class ShapesDataset(Dataset[tuple[Any, int]]):
    """Pictures of shapes with labels: `dataset[i] -> (RGB image of 32x32 pixels, label)`.

    Picture i depends on `seed` and i alone, so a larger data set starts with the smaller one.
    Attributes: `classes` (names), `targets` (labels), `scenes`.

    Args:
        size: Number of pictures, at least 1. A thousand take about half a second.
        seed: Not negative. `RESERVED_SEEDS` belong to the training of the embedded CLIP.
        transform: Applied to the PIL image on access.

    Raises:
        ValueError: `size` or `seed` is out of range.
    """

    def __init__(
        self, size: int, seed: int, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        if size < 1 or seed < 0:
            raise ValueError(
                "ShapesDataset: size must be at least 1 and seed must not be negative, "
                f"got {size=}, {seed=}"
            )
        self.classes = list(CLASSES)
        self.transform = transform
        self.scenes: list[Scene] = []
        self._pixels = np.empty((size, SIDE, SIDE, 3), dtype=np.uint8)
        for index in range(size):
            rng = np.random.default_rng([seed, index])
            scene = draw_scene(rng)
            self.scenes.append(scene)
            self._pixels[index] = paint(scene, rng)
        self.targets = [scene.label for scene in self.scenes]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self._pixels[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def caption(self, index: int) -> str:
        """Picture `index` in words, such as "a small red striped star in warm light"."""
        return self.scenes[index].caption


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a random scene, whose shape lies inside the picture but for a tenth of its radius."""
    radius = float(rng.uniform(6.5, 14))
    reach = SIDE / 2 - 0.9 * radius
    x, y = SIDE / 2 + rng.uniform(-reach, reach, size=2)
    return Scene(
        label=int(rng.integers(len(CLASSES))),
        colour=str(rng.choice(list(COLOURS))),
        texture=str(rng.choice(TEXTURES)),
        radius=radius,
        centre=(float(x), float(y)),
        angle=math.radians(rng.uniform(-18, 18)),
        warmth=float(np.clip(rng.normal(0, 0.3), -1, 1)),
    )
