"""Blending suspicious images into other images, or passing on the suspicious images' tones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cgd_wrap.data.pixels import CHANNELS, is_deep, to_rgb

MOST_CONTRAST = 4.0  # largest factor by which a toned image's contrast may grow
TOGETHER = 1 << 17  # values that are worked on together: half a megabyte, for a processor's cache

Images = list[Float[Tensor, "..."]]


def blends(
    images: Sequence[Any], others: Sequence[Any], shares: Sequence[float], *, tone: bool
) -> list[Any]:
    """Blend or tone several images, each by its own other image.

    The results are those of :func:`blended` or :func:`toned`. What is needed of an image that is
    the other image of many is computed once, and small numbers are computed for all together.

    Args:
        images: images of any kinds.
        others: the other image of each.
        shares: share of each other image, or of its tone, in [0, 1).
        tone: whether the other images pass on their tones alone.
    """
    alike: dict[Any, list[int]] = {}
    for i, image in enumerate(images):
        alike.setdefault(_kind(image) or i, []).append(i)
    found = list(images)
    for kind, places in alike.items():
        some = ([column[i] for i in places] for column in (images, others, shares))
        if isinstance(kind, int):
            made = list(map(toned if tone else blended, *some))
        else:
            made = _combined(_moved if tone else _mixed, *some)
        for i, image in zip(places, made, strict=True):
            found[i] = image
    return found


def _kind(image: Any) -> tuple[Any, ...] | None:
    """What tensors or arrays must share to be worked on together; None for other images."""
    if not isinstance(image, (Tensor, np.ndarray)):
        return None
    return type(image), tuple(image.shape), image.dtype, getattr(image, "device", None)


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
    return _combined(_mixed, [image], [other], [share])[0] if _kind(image) else image


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
    return _combined(_moved, [image], [other], [share])[0] if _kind(image) else image


def _mixed(images: Images, others: Images, shares: list[float]) -> Images:
    """Blend each image with its other image."""
    triples = zip(images, others, shares, strict=True)
    return [torch.lerp(image, other, share) for image, other, share in triples]


def _moved(images: Images, others: Images, shares: list[float]) -> Images:
    """Move the means and deviations of channels towards the other image's; a share of the way."""
    distinct = {id(other): other for other in others}  # a few images are the other image of many
    places = {key: place for place, key in enumerate(distinct)}
    moments = [found[1:] for found in _centred(list(distinct.values()))]
    means, spreads = (torch.cat(parts) for parts in zip(*moments, strict=True))
    moved: Images = []
    for centred, mean, spread in _centred(images):
        part = slice(len(moved), len(moved) + len(centred))
        which = [places[id(other)] for other in others[part]]
        share = mean.new_tensor(shares[part]).reshape(-1, *[1] * images[0].ndim)
        ratio = spreads[which] / spread.clamp(min=1e-6)
        # Without a limit, a flat image's noise would be blown up.
        scale = torch.lerp(torch.ones_like(ratio), ratio, share).clamp(max=MOST_CONTRAST)
        moved += centred.mul_(scale).add_(torch.lerp(mean, means[which], share))
    return moved


def _centred(images: Images) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some images at a time less the means of their channels, the means, and the deviations.

    torch.std_mean takes four times as long for images of 64 pixels, and more for larger ones.
    """
    axes = _plane_axes(images[0].shape)
    size = math.prod(images[0].shape[axis] for axis in axes)
    step = max(TOGETHER // max(images[0].numel(), 1), 1)
    for start in range(0, len(images), step):
        centred = torch.stack(images[start : start + step])
        mean = centred.mean(axes, keepdim=True)
        centred -= mean
        yield centred, mean, torch.linalg.vector_norm(centred, dim=axes, keepdim=True) / size**0.5


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


def _combined(
    combine: Callable[[Images, Images, list[float]], Images],
    images: list[Any],
    others: list[Any],
    shares: list[float],
) -> list[Any]:
    """Combine tensors or arrays of one kind with others; the results have that kind and range."""
    firsts = [torch.as_tensor(image) for image in images]
    shape, dtype = firsts[0].shape, firsts[0].dtype
    distinct = {id(other): other for other in others}
    fitted = {key: _fitted(torch.as_tensor(o).float(), shape) for key, o in distinct.items()}
    seconds = [fitted[id(other)] for other in others]
    found = combine([first.float() for first in firsts], seconds, shares)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        found = [values.round_().clamp_(limits.min, limits.max) for values in found]
    found = [values.to(dtype) for values in found]
    return [values.numpy() for values in found] if isinstance(images[0], np.ndarray) else found


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
    """The two axes of height and width in an image of this shape, from its end."""
    return (-3, -2) if _is_channels_last(shape) else (-2, -1)


def _is_channels_last(shape: torch.Size) -> bool:
    """Whether the channels are the last axis: by the usual numbers, or else the shorter end."""
    if len(shape) != 3:
        return False
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    return last and not first if first or last else shape[2] < shape[0]
