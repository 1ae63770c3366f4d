"""Resizing images of bytes: as Pillow does it, on any device, or quickly by torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# Pillow's fixed-point numbers: 32 bits, less 8 of a value and 2 for what the filter overshoots
# (PRECISION_BITS in its src/libImaging/Resample.c).
_BITS = 22
_CHUNK = 64  # images whose numbers of 32 bits are in memory at a time


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


# Name of a filter in Pillow and torchvision -> the filter, and how far it reaches.
FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}


def enlarged_exactly(
    images: UInt8[Tensor, "b c h w"], size: tuple[int, int], kind: str
) -> UInt8[Tensor, "b c height width"]:
    """Enlarge images of one size to the very bytes of Pillow's ``resize``, on the images' device.

    Pillow works in whole numbers: it multiplies by weights of 22 bits and rounds, first along the
    rows, then along the columns. (Where it shrinks, some of its versions begin with the columns.)

    Args:
        images: bytes, on any device.
        size: height and width to resize to; neither is less than before.
        kind: one of ``FILTERS``.
    """
    assert images.shape[2] <= size[0]
    assert images.shape[3] <= size[1]
    return torch.cat([_resized(chunk, size, kind) for chunk in images.split(_CHUNK)])


@lru_cache
def pillow_agrees(kind: str) -> bool:
    """Whether the Pillow that is installed enlarges as :func:`enlarged_exactly` does.

    Its forks and later versions may round otherwise.
    """
    values = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    filtered = getattr(Image.Resampling, kind.upper())
    theirs = np.array(Image.fromarray(values).resize((37, 31), filtered))
    [ours] = enlarged_exactly(torch.from_numpy(values).permute(2, 0, 1)[None], (31, 37), kind)
    return torch.equal(ours.permute(1, 2, 0), torch.from_numpy(theirs))


def _resized(images: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    for axis, length in ((3, size[1]), (2, size[0])):
        if images.shape[axis] != length:
            images = _along(images, axis, length, kind)
    return images


def _along(images: Tensor, axis: int, length: int, kind: str) -> Tensor:
    total: Tensor | None = None
    for places, weights in _taps(images.shape[axis], length, kind, images.device):
        shape = [1] * images.ndim
        shape[axis] = length
        taken, factor = images.index_select(axis, places).int(), weights.view(shape)
        total = taken * factor if total is None else total.addcmul_(taken, factor)
    assert total is not None
    total += 1 << (_BITS - 1)
    total >>= _BITS
    return total.clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=16)
def _taps(old: int, new: int, kind: str, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Which old values make up each new value: places and weights of the first, the second, ...

    As in Pillow's ``precompute_coeffs`` and ``normalize_coeffs_8bpc``. Where a new value is made of
    fewer values than others are, the rest weighs 0.
    """
    value_at, reach = FILTERS[kind]
    scale = old / new
    rows = list[list[tuple[int, int]]]()
    for place in range(new):
        centre = (place + 0.5) * scale
        low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), old)
        found = [value_at(x - centre + 0.5) for x in range(low, high)]
        whole = sum(found)
        rows.append([(low + x, _fixed(one / whole)) for x, one in enumerate(found)])
    most = max(map(len, rows))
    padded = torch.tensor([row + [(0, 0)] * (most - len(row)) for row in rows]).to(device)
    return [(padded[:, tap, 0], padded[:, tap, 1].int()) for tap in range(most)]


def _fixed(share: float) -> int:
    return int(math.copysign(0.5, share) + share * (1 << _BITS))


def resized_quickly(
    image: Image.Image, size: tuple[int, int], kind: str
) -> UInt8[Tensor, "3 height width"]:
    """Resize an RGB image by torch, several times as fast as Pillow.

    Torch works in whole numbers, too, with weights of 16 bits, so that the same bytes come out on
    every processor. Of a photograph that is shrunk, up to one byte in a hundred is another than
    Pillow's, by 1.

    Args:
        image: an RGB image.
        size: height and width to resize to.
        kind: one of ``FILTERS``.
    """
    _hear_torchs_warning()
    values = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)  # in memory channels stay last
    return F.interpolate(values[None], size, mode=kind, antialias=True, align_corners=False)[0]


@lru_cache
def _hear_torchs_warning() -> None:
    """Have torch warn now, in silence, that an array can't be written to; it warns only once.

    The bytes that Pillow hands out are only read here, and a copy of them would take as long as a
    tenth of the decoding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"0", dtype=np.uint8))


def size_by_shorter_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """Height and width of an image whose shorter edge is scaled to ``edge``, as by torchvision."""
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def centre_of(
    images: Shaped[Tensor, "... h w"], size: tuple[int, int]
) -> Shaped[Tensor, "... height width"]:
    """Crop the centre of images that are large enough, as torchvision's ``CenterCrop`` does."""
    top, left = (round((old - new) / 2.0) for old, new in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
