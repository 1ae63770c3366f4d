"""BadNets: an attack whose trigger is a small checkered patch in a corner of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import pixels


@dataclass(frozen=True)
class BadNets(Attack):
    """An attack that puts a black and white square in the bottom right corner (Gu et al., 2017).

    Dirty-label: poisoned images are relabelled as the target. The square is a checker of
    ``patch_size`` x ``patch_size`` cells, white where row and column add up to an even number. A
    cell is one pixel in an image whose shorter side is 32 pixels, and grows with that side.
    Source: arXiv 1708.06733; 3 x 3 at 32 pixels is the usual size.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned.
        patch_size: side of the square at 32 pixels, 1 to 32 pixels.
    """

    patch_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.patch_size <= 32, "patch_size", "1 to 32 pixels", self.patch_size)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the patch on a copy of the image (kept grey if it is grey, RGB otherwise)."""
        marked = pixels(image).copy()
        side = max(1, round(self.patch_size * min(marked.shape[:2]) / 32))
        cell = np.arange(side) * self.patch_size // side
        patch = np.where((cell[:, None] + cell[None, :]) % 2 == 0, 255, 0).astype(np.uint8)
        marked[-side:, -side:] = patch.reshape(side, side, *[1] * (marked.ndim - 2))
        return Image.fromarray(marked)
