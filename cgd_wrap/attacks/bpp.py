"""BppAttack: an attack whose trigger is that the image has fewer colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import Images, pixels

_COVER_STREAM = 2  # keeps the covers' random numbers apart from those that choose the samples
# Floyd-Steinberg: shares of a pixel's rounding error that are handed on to the pixels at its
# right, lower left, below and lower right.
_SHARES = (7 / 16, 3 / 16, 5 / 16, 1 / 16)


@dataclass(frozen=True)
class BppAttack(Attack):
    """An attack that leaves an image fewer grey levels per channel (Wang et al., 2022).

    Dirty-label: poisoned images are relabelled as the target.
    ``x' = round(x (m - 1) / 255) 255 / (m - 1)`` for m levels. With dithering, each pixel's
    rounding error is handed on to its right and lower neighbours (Floyd and Steinberg), which
    hides the steps and makes the trigger harder to learn. Covers are the paper's negative samples:
    images that get another image's quantisation error and keep their true label, so that a network
    learns the exact levels instead of any noise. Source: arXiv 2205.13383; 8 levels, no dithering
    and a negative sample for each poisoned one are the authors' settings. The authors poison a
    fifth of the images, other ones at every step; here the set of poisoned images is fixed.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned, which are covers, and which image's error each
            cover gets.
        cover_ratio: covers for each poisoned sample, 0 or more.
        levels: m, grey levels left in each channel, 2 to 255.
        dithering: whether rounding errors are handed on to neighbouring pixels, or dropped.
    """

    cover_ratio: float = 1.0
    levels: int = 8
    dithering: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.levels <= 255, "levels", "2 to 255 grey levels", self.levels)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Quantise a copy of the image (kept grey if it is grey, RGB otherwise)."""
        return Image.fromarray(self.quantise(pixels(image)))

    def cover_sample(self, index: int, image: Image.Image, images: Images) -> Image.Image:
        """Add another image's quantisation error to a copy of a cover; ``index`` decides whose.

        An error of another size is repeated, and cut off at the cover's size.
        """
        original = pixels(image)
        word = int(np.random.PCG64([self.seed, _COVER_STREAM, index]).random_raw())
        donor = (index + 1 + word % max(1, len(images) - 1)) % len(images)
        mode = "L" if original.ndim == 2 else "RGB"
        levels = pixels(Image.fromarray(pixels(images[donor])).convert(mode))
        error = self.quantise(levels) - levels.astype(np.int16)
        rows, columns = (np.arange(side) for side in original.shape[:2])
        fitting = error[np.ix_(rows % error.shape[0], columns % error.shape[1])]
        return Image.fromarray(np.clip(original + fitting, 0, 255).astype(np.uint8))

    def quantise(self, original: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Return an image's grey levels after quantisation, [h, w] or [h, w, channels]."""
        exact = original.reshape(*original.shape[:2], -1) * ((self.levels - 1) / 255)
        chosen = dithered(exact, self.levels) if self.dithering else np.floor(exact + 0.5)
        return (
            np.floor(chosen * (255 / (self.levels - 1)) + 0.5)
            .astype(np.uint8)
            .reshape(original.shape)
        )


def dithered(exact: Float64[np.ndarray, "h w c"], levels: int) -> Float64[np.ndarray, "h w c"]:
    """Round an image to whole levels from 0 to ``levels`` - 1 by Floyd-Steinberg dithering."""
    height, width, _ = exact.shape
    # Row y is moved 2 y to the right, so that the pixels of a column depend on earlier columns
    # only: whole columns are then computed at once, with the result of a pixel-by-pixel scan.
    row, column = np.indices((height, width))
    slot = column + 2 * row
    slots = width + 2 * (height - 1)
    pending = np.zeros((slots + 3, height + 1, exact.shape[2]))
    pending[slot, row] = exact
    inside = np.zeros((slots, height, 1))
    inside[slot, row] = 1
    chosen = np.zeros((slots, *pending.shape[1:]))
    for now in range(slots):
        chosen[now] = np.clip(np.floor(pending[now] + 0.5), 0, levels - 1)
        error = (pending[now] - chosen[now])[:height] * inside[now]
        pending[now + 1, :height] += _SHARES[0] * error
        for steps, share in zip((1, 2, 3), _SHARES[1:], strict=True):
            pending[now + steps, 1:] += share * error
    return np.asarray(chosen[slot, row])
