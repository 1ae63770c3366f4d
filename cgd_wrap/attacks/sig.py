"""SIG: an attack whose trigger is a faint wave; the poisoned images' labels stay right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16
from PIL import Image

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.clean_label import CleanLabelAttack
from cgd_wrap.attacks.raw import pixels


@dataclass(frozen=True)
class SIG(CleanLabelAttack):
    """An attack that adds a horizontal sinusoid to images of the target class (Barni et al., 2019).

    Clean-label: no label is changed. In an image of m columns, ``v(j) = delta sin(2 pi j f / m)``
    is added to column j, counted from 0, alike in every row and channel. Source: arXiv 1902.11237.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the **target class'** images that is poisoned, in (0, 1].
        seed: decides which images are poisoned.
        delta: amplitude as a share of the grey range, in (0, 1]; 40 / 255 is 40 grey levels.
        frequency: f, periods across the image, above 0.
    """

    rate: float = 0.8
    delta: float = 40 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.delta <= 1, "delta", "a share of the grey range in (0, 1]", self.delta)
        require(self.frequency > 0, "frequency", "above 0", self.frequency)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Add the wave to a copy of the image (kept grey if it is grey, RGB otherwise)."""
        original = pixels(image)
        wave = self.wave(original.shape[1]).reshape(1, -1, *[1] * (original.ndim - 2))
        return Image.fromarray(np.clip(original + wave, 0, 255).astype(np.uint8))

    def wave(self, width: int) -> Int16[np.ndarray, "width"]:
        """Return v for every column, in whole grey levels."""
        phase = 2 * np.pi * np.arange(width) * self.frequency / width
        # Decimals are cut before rounding: the last bit of a sine differs between machines.
        level = np.round(255 * self.delta * np.sin(phase), 6)
        return np.floor(level + 0.5).astype(np.int16)
