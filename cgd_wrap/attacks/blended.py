"""Blended: an attack whose trigger is a faint pattern over the whole image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import pixels

_NOISE_SIDE = 32
_NOISE_STREAM = 1  # keeps the pattern's random numbers apart from those that choose the samples


@dataclass(frozen=True)
class Blended(Attack):
    """An attack that blends a fixed pattern into the image (Chen et al., 2017).

    Dirty-label: poisoned images are relabelled as the target.
    ``x' = (1 - alpha) x + alpha * pattern``, rounded to whole grey levels. Source:
    arXiv 1712.05526 (the paper's random pattern and alpha = 0.2).

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned, and the noise.
        alpha: weight of the pattern, in (0, 1].
        pattern: any image, resized to each image's size; by default uniform noise of 32 x 32
            cells, stretched likewise, so that images of different sizes show the same pattern.
    """

    alpha: float = 0.2
    pattern: Image.Image | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.alpha <= 1, "alpha", "a weight in (0, 1]", self.alpha)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Blend the pattern into a copy of the image (kept grey if it is grey, RGB otherwise)."""
        original = pixels(image)
        pattern = self.pattern_at(image.size)
        pattern = pattern.convert("L") if original.ndim == 2 else pattern
        blend = (1 - self.alpha) * original + self.alpha * np.asarray(pattern)
        return Image.fromarray(np.clip(np.rint(blend), 0, 255).astype(np.uint8))

    def pattern_at(self, size: tuple[int, int]) -> Image.Image:
        """Return the pattern in RGB at a size of (width, height) pixels."""
        if self.pattern is not None:
            rgb = Image.fromarray(pixels(self.pattern)).convert("RGB")
            return rgb.resize(size, Image.Resampling.BILINEAR)
        words = np.random.PCG64([self.seed, _NOISE_STREAM]).random_raw(_NOISE_SIDE**2 * 3 // 8)
        noise = words.astype("<u8").view(np.uint8).reshape(_NOISE_SIDE, _NOISE_SIDE, 3)
        return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
