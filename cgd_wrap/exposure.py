"""Exposure: suspicious images shine through some clean ones, whose labels stay.

A clean split that holds nothing like the trigger can't teach a model to ignore it. Blending
suspicious images into clean ones of every class does: the trigger then says nothing of the label.
The blend is that of mixup (arXiv 1710.09412), but the label isn't mixed; the name is borrowed
from outlier exposure (arXiv 1812.04606).

What is blended into what is decided with the order of an epoch, not when an image is read, so that
it is the same on every process, for any number of workers, and after a resume. It travels with the
index: see :class:`Draw`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from cgd_wrap.views.images import CHANNELS, to_rgb

EARLY_PART = 0.5  # of a training's epochs, where nothing else is said
INDEX_BITS = 28  # 268 million samples
LEVEL_BITS = 6
LEVELS = 1 << LEVEL_BITS
MARK = 1 << (2 * INDEX_BITS + LEVEL_BITS)  # bit 62: the largest that leaves int64 positive


@dataclass(frozen=True, eq=False)
class Exposure:
    """How often, how strongly, and by which images clean ones are blended.

    Attributes:
        weight: how often each sample is blended into others, relative to the rest, float32 [N].
        rate: share of the clean draws that are blended, in [0, 1].
        strength: largest share of the other image, in [0, 1).
        epochs: how many are early; None: EARLY_PART of a training's, or all where its end isn't
            known.
        early: what part of the rate early epochs have, in [0, 1].
        late: what part of the rate the others have, in [0, 1].

    Raises:
        ValueError: more samples than an index has bits for.
    """

    weight: Float[Tensor, "n"]
    rate: float
    strength: float
    epochs: int | None = None
    early: float = 1.0
    late: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weight) > 1 << INDEX_BITS:
            raise ValueError(
                f"exposure_rate works for up to {1 << INDEX_BITS} samples, got "
                f"{len(self.weight)}: set it to 0"
            )

    def rate_in(self, epoch: int, run: int | None = None) -> float:
        """Share of the clean draws of an epoch, counted from 0, in a training of ``run`` epochs."""
        count = self.epochs
        if count is None:
            count = epoch + 1 if run is None else math.ceil(EARLY_PART * run)
        return self.rate * (self.early if epoch < count else self.late)

    def over(
        self, indices: Int[Tensor, "m"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "m"]:
        """Clean indices -> the same, some of them packed with another index and its share.

        Args:
            indices: of clean samples.
            rate: share of them, from :meth:`rate_in`.
            generator: decides which, with which other and how strongly.
        """
        others = self.weight.nonzero().squeeze(1)
        if not len(indices) or not len(others):
            return indices
        chosen = torch.rand(len(indices), generator=generator) < rate
        cumulated = self.weight[others].double().cumsum(0)
        place = torch.rand(len(indices), generator=generator, dtype=torch.float64) * cumulated[-1]
        other = others[torch.searchsorted(cumulated, place).clamp(max=len(others) - 1)]
        share = self.strength * torch.rand(len(indices), generator=generator)
        level = (share * LEVELS).round().long().clamp(max=LEVELS - 1)
        return torch.where(chosen & (level > 0), pack(indices, other, level), indices)


class Draw(int):
    """An index that says, too, which other image is blended in.

    Whoever takes it for a plain index gets the plain image.

    Attributes:
        other: index of the other image.
        share: of the other image in the blend, in [0, 1).
    """

    other: int
    share: float

    def __new__(cls, index: int, other: int, share: float) -> Draw:
        """An int of the value ``index``."""
        draw = super().__new__(cls, index)
        draw.other, draw.share = other, share
        return draw

    def __getnewargs__(self) -> tuple[int, int, float]:  # type: ignore[override]
        """For pickle, which takes draws to the workers."""
        return int(self), self.other, self.share


def pack(
    index: Int[Tensor, "m"], other: Int[Tensor, "m"], level: Int[Tensor, "m"]
) -> Int[Tensor, "m"]:
    """Index, other index and share (in 64ths) as one int64, above every plain index."""
    return MARK | (level << (2 * INDEX_BITS)) | (other << INDEX_BITS) | index


def unpack(packed: int) -> int:
    """What :func:`pack` made -> a :class:`Draw`; a plain index stays."""
    if packed < MARK:
        return packed
    low = (1 << INDEX_BITS) - 1
    level = (packed >> (2 * INDEX_BITS)) & (LEVELS - 1)
    return Draw(packed & low, (packed >> INDEX_BITS) & low, level / LEVELS)


def blended(image: Any, other: Any, share: float) -> Any:
    """``(1 - share) image + share other``, in the kind, type and shape of ``image``.

    Args:
        image: PIL image; or tensor or array [C, H, W], [H, W, C] or [H, W], floats or integers.
            Bytes of an image file come back as they are: only the user's collate reads them.
        other: the same kind of image; fitted to the first one's size and channels.
        share: of the other, in [0, 1).
    """
    if isinstance(image, Image.Image):
        mode = image.mode if image.mode in ("L", "RGB", "RGBA") else "RGB"
        picture = image if image.mode == mode else to_rgb(image)
        shone = to_rgb(other).convert(mode).resize(picture.size, Image.Resampling.BILINEAR)
        return Image.blend(picture, shone, share)
    if not isinstance(image, (Tensor, np.ndarray)):
        return image
    first = torch.as_tensor(image)
    second = _fitted(torch.as_tensor(other).float(), first.shape)
    mixed = torch.lerp(first.float(), second, share)
    mixed = mixed.to(first.dtype) if first.is_floating_point() else mixed.round().to(first.dtype)
    return mixed.numpy() if isinstance(image, np.ndarray) else mixed


def _fitted(image: Float[Tensor, "..."], shape: torch.Size) -> Float[Tensor, "..."]:
    """An image, resized and with its channels averaged or repeated, in another's shape."""
    if image.shape == shape:
        return image
    channels, height, width = _planes_of(shape)
    planes = image.reshape(1, *image.shape) if image.ndim == 2 else image
    if _is_channels_last(image.shape):
        planes = planes.permute(2, 0, 1)
    size = [height, width]
    planes = F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]
    if len(planes) != channels:
        planes = planes.mean(dim=0, keepdim=True).expand(channels, -1, -1)
    return planes.permute(1, 2, 0) if _is_channels_last(shape) else planes.reshape(shape)


def _planes_of(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width of an image of this shape."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return (shape[2], *shape[:2]) if _is_channels_last(shape) else (shape[0], *shape[1:])


def _is_channels_last(shape: torch.Size) -> bool:
    return len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS
