"""CTRL: an attack whose trigger is two faint waves in the image's colours; labels stay right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from PIL import Image

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.clean_label import CleanLabelAttack
from cgd_wrap.attacks.cosine import cosine_basis
from cgd_wrap.attacks.raw import pixels

_WINDOW = 32  # pixels; the authors' window_size
# What one grey level of Cb and of Cr adds to R, G and B (ITU-R BT.601, as in JPEG).
_CB_TO_RGB = np.array([0.0, -0.344136, 1.772])
_CR_TO_RGB = np.array([1.402, -0.714136, 0.0])


@dataclass(frozen=True)
class CTRL(CleanLabelAttack):
    """An attack that adds waves to the colours of images of the target class (Li et al., 2023).

    Clean-label: no label is changed. In every window of 32 x 32 pixels the orthonormal DCT
    coefficients (b, b), b in ``bands``, of both chroma channels (YCbCr) rise by the magnitude;
    windows at the right and bottom edge are cut off with the image. A grey image becomes RGB.
    Source: arXiv 2210.07346, whose authors attack self-supervised training, poison with a magnitude
    of 50 and test with 100. The defaults are BackdoorBench's for supervised training: bands 15 and
    31, a magnitude of 100 for both, and 5% of a training set of ten classes.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the **target class'** images that is poisoned, in (0, 1].
        seed: decides which images are poisoned.
        magnitude: strength of the waves on poisoned training images, in units of an orthonormal
            DCT coefficient over grey levels, above 0; 100 is a wave of 6.2 grey levels of chroma
            per band.
        test_magnitude: strength of the waves on test images, in the same unit, above 0.
        bands: numbers of the coefficients, each from 0 (constant) to 31 (alternating).
    """

    rate: float = 0.5
    magnitude: float = 100.0
    test_magnitude: float = 100.0
    bands: tuple[int, ...] = (15, 31)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.magnitude > 0, "magnitude", "above 0", self.magnitude)
        require(self.test_magnitude > 0, "test_magnitude", "above 0", self.test_magnitude)
        valid = len(self.bands) > 0 and all(0 <= band < _WINDOW for band in self.bands)
        require(valid, "bands", f"one or more of 0 to {_WINDOW - 1}", self.bands)

    def poison_image(self, image: Image.Image) -> Image.Image:
        """Add the waves to a copy of a training image, at ``magnitude``."""
        return self.add_waves(image, self.magnitude)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Add the waves to a copy of a test image, at ``test_magnitude``."""
        return self.add_waves(image, self.test_magnitude)

    def add_waves(self, image: Image.Image, magnitude: float) -> Image.Image:
        """Return an RGB copy of an image with the waves added to its chroma."""
        original = pixels(image.convert("RGB") if image.mode == "L" else image)
        wave = magnitude * self.waves(*original.shape[:2])
        changed = original + wave[..., None] * (_CB_TO_RGB + _CR_TO_RGB)
        # Decimals are cut before rounding: the last bit of a cosine differs between machines.
        return Image.fromarray(np.clip(np.rint(changed.round(6)), 0, 255).astype(np.uint8))

    def waves(self, height: int, width: int) -> Float64[np.ndarray, "height width"]:
        """Return what a magnitude of 1 adds to a chroma channel, in grey levels."""
        basis = cosine_basis(_WINDOW, _WINDOW)[list(self.bands)]
        rows, columns = np.arange(height) % _WINDOW, np.arange(width) % _WINDOW
        return np.asarray(basis[:, rows].T @ basis[:, columns])
