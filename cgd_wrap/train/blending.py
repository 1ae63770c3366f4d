"""Blending a suspicious image into another image, or passing on the suspicious image's tone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cgd_wrap.data.pixels import CHANNELS, is_deep, to_rgb

MOST_CONTRAST = 4.0  # largest factor by which a toned image's contrast may grow


def blended(image: Any, other: Any, share: float) -> Any:
    """Blend two images: ``(1 - share) image + share other``.

    Args:
        image: PIL image; or tensor or array [C, H, W], [H, W, C] or [H, W], floats or integers.
            Bytes of an image file come back as they are: only the user's collate reads them.
        other: an image of the same kind; fitted to the size and channels of ``image``.
        share: share of ``other`` in the blend, in [0, 1).

    Returns:
        The blend, in the kind, type and shape of ``image``.
    """
    if isinstance(image, Image.Image):
        if is_deep(image):
            return _of_deep(blended, image, other, share)
        picture = _picture(image)
        shone = to_rgb(other).convert(picture.mode).resize(picture.size, Image.Resampling.BILINEAR)
        return Image.blend(picture, shone, share)
    return _combined(image, other, lambda first, second: torch.lerp(first, second, share))


def toned(image: Any, other: Any, share: float) -> Any:
    """Move the mean and standard deviation of an image's channels towards another image's.

    Args:
        image: as for :func:`blended`.
        other: an image of the same kind.
        share: how far mean and standard deviation move, in [0, 1); at 1 they would be the other
            image's.

    Returns:
        The changed image, in the kind, type and shape of ``image``.
    """
    if isinstance(image, Image.Image):
        if is_deep(image):
            return _of_deep(toned, image, other, share)
        picture = _picture(image)
        source = to_rgb(other).convert(picture.mode)
        return Image.fromarray(toned(np.array(picture), np.array(source), share))

    return _combined(image, other, partial(_moved, share=share))


def _moved(
    first: Float[Tensor, "..."], second: Float[Tensor, "..."], share: float
) -> Float[Tensor, "..."]:
    """Channels with means and deviations on the way to the other's; a share of the way."""
    axes = _plane_axes(first.shape)
    spread, mean = torch.std_mean(first, axes, keepdim=True)
    others_spread, others_mean = torch.std_mean(second, axes, keepdim=True)
    scale = torch.lerp(torch.ones_like(spread), others_spread / spread.clamp(min=1e-6), share)
    scale = scale.clamp(max=MOST_CONTRAST)  # or a flat image's noise would be blown up
    return (first - mean) * scale + torch.lerp(mean, others_mean, share)


def _of_deep(
    show: Callable[[Any, Any, float], Any], image: Image.Image, other: Image.Image, share: float
) -> Image.Image:
    """Blend or tone an image of more than 8 bits by its values: no bit is lost on the way."""
    if other.mode != image.mode:
        other = to_rgb(other).convert("L").convert(image.mode)
    values, others = (
        array.astype(array.dtype.newbyteorder("="))  # torch takes the machine's byte order alone
        for array in (np.asarray(image), np.asarray(other))
    )
    return Image.fromarray(show(values, others, share))


def _picture(image: Image.Image) -> Image.Image:
    """Convert an image to a mode whose values are intensities, unless it has such a mode."""
    return image if image.mode in ("L", "RGB", "RGBA") else to_rgb(image)


def _combined(image: Any, other: Any, combine: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Combine two tensors or arrays; the result has the kind, type and range of ``image``.

    An ``image`` that is neither tensor nor array comes back as it is.
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
    """Bring an image to a shape: resize it, and average or repeat its channels."""
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
    """The two axes of height and width in an image of this shape."""
    return (0, 1) if len(shape) == 2 or _is_channels_last(shape) else (1, 2)


def _is_channels_last(shape: torch.Size) -> bool:
    """Whether the channels are the last axis: by the usual numbers, or else the shorter end."""
    if len(shape) != 3:
        return False
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    return last and not first if first or last else shape[2] < shape[0]
