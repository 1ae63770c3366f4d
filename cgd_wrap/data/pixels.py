"""Converting any picture of a dataset to RGB, and telling why a picture could not be read."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from cgd_wrap.errors import BadSampleError, DatasetError

# 2**26 pixels are 200 MB as RGB: far above any photograph scaled to a model's input, far below
# what an image of 1 x 5000 pixels turns into when its shorter edge is scaled to 224.
MAX_RESIZED_PIXELS = 2**26

CHANNELS = (1, 3, 4)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_image(value: object) -> bool:
    """Whether ``value`` can be an image that :func:`as_rgb` converts."""
    if isinstance(value, Image.Image):
        return True
    if isinstance(value, (np.ndarray, torch.Tensor)):
        shape = tuple(value.shape)
        numeric = not isinstance(value, np.ndarray) or value.dtype.kind in "buif"
        if not numeric or 0 in shape:
            return False
        return len(shape) == 2 or (len(shape) == 3 and bool({shape[0], shape[2]} & {*CHANNELS}))
    return _is_encoded(value)


def is_picture(value: object) -> bool:
    """Whether ``value`` is surely an image: intensities in planes of some size, with channels."""
    if isinstance(value, Image.Image):
        return value.mode in ("L", "RGB", "RGBA")
    if not isinstance(value, (np.ndarray, torch.Tensor)) or not is_image(value):
        return False
    intensities = torch.as_tensor(value[:0]).dtype in (torch.uint8, *_FLOATS)
    return intensities and value.ndim == 3 and sum(size >= 8 for size in value.shape) >= 2


def as_rgb(value: object) -> Image.Image:
    """Convert a PIL image, an array, a tensor or the bytes of an image file to an RGB image.

    Args:
        value: PIL image of any mode; uint8 or uint16 values, or floats in [0, 1], of shape
            [H, W], [H, W, C] or [C, H, W] with C in {1, 3, 4}; bytes of an image file, or the
            ``{"bytes": ..., "path": ...}`` of an undecoded column.

    Raises:
        TypeError: the value is no image.
        DatasetError: floats lie outside [0, 1], so the image was normalised.
    """
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if not is_image(value):
        raise TypeError(f"expected an image (PIL image, array or tensor), got {describe(value)}")
    if isinstance(value, (bytes, Mapping)):
        with _open_encoded(value) as image:
            return to_rgb(image)
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return to_rgb(_from_array(array, channels_first=True))
    return to_rgb(_from_array(np.asarray(value), channels_first=False))


def describe(value: object) -> str:
    """Describe a value for error messages: type, and shape and kind of arrays and tensors."""
    name = type(value).__name__
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{name} of shape {tuple(value.shape)} and type {value.dtype}"
    return name


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, 8 bits a channel; of several frames, the first.

    16-bit images are scaled down by 8 bits (PIL's own conversion clips their values); transparency
    is dropped, as by ``convert("RGB")``.
    """
    if image.tell() != 0:
        image.seek(0)
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # By way of RGBA: straight to RGB, PIL warns about transparency given as bytes.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def check_size(width: int, height: int, resized_to: int) -> None:
    """Refuse an image that grows beyond all bounds when its shorter edge becomes ``resized_to``.

    Args:
        width: width of the stored image, in pixels.
        height: height of the stored image, in pixels.
        resized_to: shorter edge after the resize, in pixels.

    Raises:
        PIL.Image.DecompressionBombError: the image has more than 2**26 pixels after the resize.
    """
    scale = max(resized_to / max(min(width, height), 1), 1.0)
    pixels = width * scale * height * scale
    if pixels > MAX_RESIZED_PIXELS:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels become {pixels:.3g} when the shorter edge is scaled to "
            f"{resized_to}; at most {MAX_RESIZED_PIXELS} are processed"
        )


def classify_failure(error: BaseException, path: str | None = None) -> str:
    """Turn the error of an unreadable sample into a short code.

    Args:
        error: the error that was raised; its causes are searched, too.
        path: file of the sample, or None where the file isn't known.

    Returns:
        ``"empty"``, ``"not_image"``, ``"truncated"``, ``"corrupt"``, ``"too_large"``,
        ``"missing"``, ``"no_permission"``, ``"io_error"`` or ``"getitem_failed"``.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        reason = _classify_one(link, path)
        if reason is not None:
            return reason
        link = link.__cause__ or link.__context__
    return "getitem_failed"


def _classify_one(error: BaseException, path: str | None) -> str | None:
    text = str(error).lower()
    if isinstance(error, BadSampleError):
        return error.reason
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too_large"
    if isinstance(error, MemoryError):
        return "too_large"
    if isinstance(error, UnidentifiedImageError):
        return "empty" if _is_empty_file(path or _named_file(str(error))) else "not_image"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no_permission"
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated"
    if isinstance(error, (SyntaxError, zlib.error, struct.error)):
        return "corrupt"
    if isinstance(error, OSError):
        return "corrupt" if error.errno is None else "io_error"
    return None


def _named_file(message: str) -> str | None:
    found = re.search(r"'([^']+)'", message)
    return found.group(1) if found else None


def _is_empty_file(path: str | None) -> bool:
    try:
        return path is not None and os.path.getsize(path) == 0
    except (OSError, ValueError):
        return False


def _is_encoded(value: object) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    return isinstance(value, bytes)


def _open_encoded(value: bytes | Mapping[str, object]) -> Image.Image:
    data = value if isinstance(value, bytes) else value["bytes"]
    if isinstance(data, bytes):
        return Image.open(BytesIO(data))
    assert isinstance(value, Mapping)
    return Image.open(str(value["path"]))


def _from_array(array: np.ndarray, channels_first: bool) -> Image.Image:
    """Convert an array to a PIL image; ``channels_first`` decides if both ends may be channels."""
    if array.ndim == 3:
        first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        array = _from_unit_floats(array)
    elif array.dtype != np.uint8:
        array = _to_8_bits(array)
    return Image.fromarray(np.ascontiguousarray(array))


def _from_unit_floats(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        raise DatasetError(
            f"expected image values in [0, 1], got [{low:.4g}, {high:.4g}]: the images are "
            "already normalised and CLIP needs the raw ones. Pass clip_dataset=, the same "
            "samples in the same order without normalisation, or keep the normalisation in the "
            "dataset's transform attribute, where it can be left out"
        )
    return np.rint(array * 255.0).astype(np.uint8)


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    """Convert wider values to uint8: 16-bit values lose 8 bits, floats in [0, 1] are stretched."""
    if array.dtype.kind == "f":
        array = np.nan_to_num(array.astype(np.float64), nan=0.0)
        array = array * 255.0 if array.max(initial=0.0) <= 1.0 else array
        array = array / 256.0 if array.max(initial=0.0) > 255.0 else array
        return np.clip(np.rint(array), 0, 255).astype(np.uint8)
    values = array.astype(np.int64)
    if (array.dtype.kind == "u" and array.dtype.itemsize == 2) or values.max(initial=0) > 255:
        values = values >> 8
    return np.clip(values, 0, 255).astype(np.uint8)
