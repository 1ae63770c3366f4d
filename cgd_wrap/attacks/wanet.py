"""WaNet: an attack whose trigger is a small, smooth, fixed warp of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import Images, pixels

# Keep the random numbers of the warp and of the covers apart from those that choose the samples.
_GRID_STREAM, _COVER_STREAM = 3, 4


@dataclass(frozen=True)
class WaNet(Attack):
    """An attack that warps the whole image by a fixed elastic field (Nguyen and Tran, 2021).

    Dirty-label: poisoned images are relabelled as the target. A ``grid_size`` x ``grid_size`` grid
    of shifts, uniform in [-1, 1] each way and divided by their mean absolute value, is
    interpolated bicubically to the image's size. Each pixel is then read, bilinearly, from a place
    that is ``strength / 2`` times its shift away, in pixels (``s P / h`` where the image spans
    [-1, 1]); no place lies beyond the border. Covers are the paper's noise mode: images that get
    the same warp plus a random shift of up to half a pixel at each pixel, and keep their true
    label, so that a network learns this warp and no other. Source: arXiv 2102.10369; grid 4,
    strength 0.5 and two covers for each poisoned image are the paper's. The paper warps other
    images at every step; here the set of warped images is fixed.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides the warp, which images are poisoned and which are covers, and their noise.
        cover_ratio: covers for each poisoned sample, 0 or more.
        grid_size: k, points of the grid each way, 2 or more.
        strength: s, above 0; the grid's mean shift each way is s / 2 pixels.
    """

    cover_ratio: float = 2.0
    grid_size: int = 4
    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid_size >= 2, "grid_size", "2 points or more", self.grid_size)
        require(self.strength > 0, "strength", "above 0", self.strength)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Warp a copy of the image (kept grey if it is grey, RGB otherwise)."""
        return self.warp(image)

    def cover_sample(self, index: int, image: Image.Image, images: Images) -> Image.Image:
        """Warp a copy of a cover, with noise that the cover's index decides."""
        noise = _uniform([self.seed, _COVER_STREAM, index], image.height, image.width)
        return self.warp(image, noise / 2)

    def warp(
        self, image: Image.Image, noise: Float64[Tensor, "h w 2"] | None = None
    ) -> Image.Image:
        """Warp a copy of the image; ``noise`` is added to the shifts, (x, y) in pixels."""
        original = pixels(image)
        height, width = original.shape[:2]
        shifts = self.shifts(height, width)
        moved = read_at(original, shifts if noise is None else shifts + noise)
        # Decimals are cut before rounding: an interpolation's last bit differs between machines.
        return Image.fromarray(np.floor(moved.round(6) + 0.5).astype(np.uint8))

    def shifts(self, height: int, width: int) -> Float64[Tensor, "height width 2"]:
        """Return how far from each pixel its colour is read, (x, y) in pixels."""
        points = _uniform([self.seed, _GRID_STREAM], self.grid_size, self.grid_size)
        points = (points / points.abs().mean()).permute(2, 0, 1)[None]
        field = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
        # An image of n pixels spans [-1, 1] from the first centre to the last: s P / n is
        # s P (n - 1) / (2 n) pixels.
        unit = torch.tensor(
            [(side - 1) / (2 * side) for side in (width, height)], dtype=torch.float64
        )
        return self.strength * unit * field[0].permute(1, 2, 0)


def read_at(
    original: UInt8[np.ndarray, "h w *channels"], shifts: Float64[Tensor, "h w 2"]
) -> Float64[np.ndarray, "h w *channels"]:
    """Read an image's grey levels bilinearly, each pixel ``shifts`` (x, y) pixels from its place.

    Places outside the image are moved to its border.
    """
    height, width = original.shape[:2]
    columns, rows = torch.arange(width), torch.arange(height)
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) + shifts
    span = (2 * places + 1) / torch.tensor([width, height]) - 1
    levels = original.astype(np.float64).reshape(height, width, -1)
    planes = torch.from_numpy(levels).permute(2, 0, 1)
    read = F.grid_sample(planes[None], span[None], padding_mode="border", align_corners=False)
    return read[0].permute(1, 2, 0).numpy().reshape(original.shape)


def _uniform(key: list[int], height: int, width: int) -> Float64[Tensor, "height width 2"]:
    """Pairs of random numbers in [-1, 1), the same on every machine."""
    words = np.random.PCG64(key).random_raw(height * width * 2) >> np.uint64(11)
    return torch.from_numpy(words / 2.0**52 - 1).reshape(height, width, 2)
