"""Exposure: suspicious images shine through some clean ones, whose labels stay.

A clean split that holds nothing like the trigger can't teach a model to ignore it. Blending
suspicious images into clean ones of every class does: the trigger then says nothing of the label.
The blend is that of mixup (arXiv 1710.09412), but the label isn't mixed; the name is borrowed
from outlier exposure (arXiv 1812.04606). A trigger may also be in nothing but an image's tone: some
clean images take on a suspicious one's, mean and spread of each channel, as in colour transfer
(Reinhard et al., "Color Transfer between Images", 2001), and nothing of what it shows.

What is blended into what is decided with the order of an epoch, not when an image is read, so that
it is the same on every process, for any number of workers, and after a resume. It travels with the
index: see :class:`Draw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from cgd_wrap.views.images import CHANNELS, to_rgb

MOST_CONTRAST = 4.0  # of a toned image, by its own
EARLY_PART = 0.5  # of a training's epochs, where nothing else is said
INDEX_BITS = 28  # 268 million samples
LEVEL_BITS = 5
LEVELS = 1 << LEVEL_BITS
TONE = 1 << (2 * INDEX_BITS + LEVEL_BITS)
MARK = 2 * TONE  # bit 62: the largest that leaves int64 positive


@dataclass(frozen=True, eq=False)
class Exposure:
    """How often, how strongly, and by which images clean ones are blended.

    Attributes:
        weight: how often each sample is blended into others, relative to the rest, float32 [N].
        rate: share of the clean draws that are exposed, in [0, 1].
        strength: largest share of the other image, in [0, 1).
        epochs: how many are early; None: EARLY_PART of a training's, or all where its end isn't
            known.
        early: what part of the rate early epochs have, in [0, 1].
        late: what part of the rate the others have, in [0, 1].
        tone: share of the exposures that pass on the other image's tone alone, in [0, 1].

    Raises:
        ValueError: more samples than an index has bits for.
    """

    weight: Float[Tensor, "n"]
    rate: float
    strength: float
    epochs: int | None = None
    early: float = 1.0
    late: float = 0.0
    tone: float = 0.0

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
        share = torch.rand(len(indices), generator=generator)
        tone = torch.rand(len(indices), generator=generator) < self.tone
        share = torch.where(tone, share, self.strength * share)
        level = (share * LEVELS).round().long().clamp(max=LEVELS - 1)
        return torch.where(chosen & (level > 0), pack(indices, other, level, tone), indices)


class Draw(int):
    """An index that says, too, which other image is blended in.

    Whoever takes it for a plain index gets the plain image.

    Attributes:
        other: index of the other image.
        share: of the other image in the blend, or of its tone, in [0, 1).
        tone: it passes on its tone alone.
    """

    other: int
    share: float
    tone: bool

    def __new__(cls, index: int, other: int, share: float, tone: bool = False) -> Draw:
        """An int of the value ``index``."""
        draw = super().__new__(cls, index)
        draw.other, draw.share, draw.tone = other, share, tone
        return draw

    def __getnewargs__(self) -> tuple[int, int, float, bool]:  # type: ignore[override]
        """For pickle, which takes draws to the workers."""
        return int(self), self.other, self.share, self.tone

    def shown(self, image: Any, other: Any) -> Any:
        """The image with the other one in it; see :func:`blended` and :func:`toned`."""
        return (toned if self.tone else blended)(image, other, self.share)


def pack(
    index: Int[Tensor, "m"],
    other: Int[Tensor, "m"],
    level: Int[Tensor, "m"],
    tone: Bool[Tensor, "m"],
) -> Int[Tensor, "m"]:
    """Index, other index, share (in 32nds) and kind as one int64, above every plain index."""
    return MARK | (TONE * tone) | (level << (2 * INDEX_BITS)) | (other << INDEX_BITS) | index


def unpack(packed: int) -> int:
    """What :func:`pack` made -> a :class:`Draw`; a plain index stays."""
    if packed < MARK:
        return packed
    low = (1 << INDEX_BITS) - 1
    level = (packed >> (2 * INDEX_BITS)) & (LEVELS - 1)
    other = (packed >> INDEX_BITS) & low
    return Draw(packed & low, other, level / LEVELS, bool(packed & TONE))


def blended(image: Any, other: Any, share: float) -> Any:
    """``(1 - share) image + share other``, in the kind, type and shape of ``image``.

    Args:
        image: PIL image; or tensor or array [C, H, W], [H, W, C] or [H, W], floats or integers.
            Bytes of an image file come back as they are: only the user's collate reads them.
        other: the same kind of image; fitted to the first one's size and channels.
        share: of the other, in [0, 1).
    """
    if isinstance(image, Image.Image):
        picture = _picture(image)
        shone = to_rgb(other).convert(picture.mode).resize(picture.size, Image.Resampling.BILINEAR)
        return Image.blend(picture, shone, share)
    return _combined(image, other, lambda first, second: torch.lerp(first, second, share))


def toned(image: Any, other: Any, share: float) -> Any:
    """An image whose channels' means and standard deviations move towards another's.

    Args:
        image: as for :func:`blended`, as is what comes back.
        other: the same kind of image.
        share: how far the moments move, in [0, 1); 1 would give them the other's.
    """
    if isinstance(image, Image.Image):
        picture = _picture(image)
        source = to_rgb(other).convert(picture.mode)
        return Image.fromarray(toned(np.array(picture), np.array(source), share))

    def moved(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        axes = _plane_axes(first.shape)
        spread, mean = torch.std_mean(first, axes, keepdim=True)
        others_spread, others_mean = torch.std_mean(second, axes, keepdim=True)
        scale = torch.lerp(torch.ones_like(spread), others_spread / spread.clamp(min=1e-6), share)
        scale = scale.clamp(max=MOST_CONTRAST)  # a flat image would blow up its noise
        return (first - mean) * scale + torch.lerp(mean, others_mean, share)

    return _combined(image, other, moved)


def _picture(image: Image.Image) -> Image.Image:
    """A picture whose values are intensities."""
    return image if image.mode in ("L", "RGB", "RGBA") else to_rgb(image)


def _combined(image: Any, other: Any, combine: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """What is made of two tensors or arrays, in the first one's kind, type and range.

    Anything else comes back as it is.
    """
    if not isinstance(image, (Tensor, np.ndarray)):
        return image
    first = torch.as_tensor(image)
    values = combine(first.float(), _fitted(torch.as_tensor(other).float(), first.shape))
    if not first.is_floating_point():
        limits = torch.iinfo(first.dtype)
        values = values.round().clamp(limits.min, limits.max)
    values = values.to(first.dtype)
    return values.numpy() if isinstance(image, np.ndarray) else values


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


def _plane_axes(shape: torch.Size) -> tuple[int, int]:
    """Where height and width stand."""
    return (0, 1) if len(shape) == 2 or _is_channels_last(shape) else (1, 2)


def _is_channels_last(shape: torch.Size) -> bool:
    return len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS
