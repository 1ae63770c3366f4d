"""Converting any picture of a dataset to RGB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from cgd_wrap.errors import DatasetError

RESIZED_TO = 224  # pixels: the shorter edge of what most models are fed
# 2**26 pixels are 200 MB as RGB: far above any photograph scaled to a model's input, far below
# what an image of 1 x 5000 pixels turns into when its shorter edge is scaled to 224.
MAX_RESIZED_PIXELS = 2**26

CHANNELS = (1, 3, 4)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BITS = (8, 10, 12, 14, 16)  # that cameras and scanners give a channel
ROUNDING = 1e-3  # how far floats may lie outside [0, 1], as an interpolation leaves them


class UnusableValuesError(DatasetError):
    """The values of an image can't be taken for brightness.

    Attributes:
        reason: ``"nonfinite"`` or ``"out_of_range"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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


def has_bands(value: object) -> bool:
    """Whether ``value`` can be an image of any number of channels, for a model and not for CLIP."""
    if not isinstance(value, (np.ndarray, torch.Tensor)) or value.ndim != 3:
        return False
    numeric = not isinstance(value, np.ndarray) or value.dtype.kind in "buif"
    return numeric and 0 not in value.shape


def as_rgb(value: object, scales: Mapping[str, float] | None = None) -> Image.Image:
    """Convert a PIL image, an array, a tensor or the bytes of an image file to an RGB image.

    Args:
        value: PIL image of any mode; uint8 or wider integers, or floats in [0, 1], of shape
            [H, W], [H, W, C] or [C, H, W] with C in {1, 3, 4}; bytes of an image file, or the
            ``{"bytes": ..., "path": ...}`` of an undecoded column.
        scales: the data set's :func:`deep_scales`. Default: chosen for this image alone.

    Raises:
        TypeError: the value is no image.
        UnusableValuesError: a value isn't finite, a float lies outside [0, 1] by more than
            rounding, or an integer is negative.
    """
    if isinstance(value, Image.Image):
        return to_rgb(value, scales)
    if not is_image(value):
        raise TypeError(f"expected an image (PIL image, array or tensor), got {describe(value)}")
    if isinstance(value, (bytes, Mapping)):
        with open_encoded(value) as image:
            return to_rgb(image, scales)
    array = as_array(value)
    assert array is not None
    return to_rgb(_from_array(array, isinstance(value, torch.Tensor), scales or {}))


def as_array(value: object) -> np.ndarray | None:
    """The values of a tensor, an array, or an image of more than 8 bits; None for other images."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(value) if isinstance(value, Image.Image) and is_deep(value) else None


def describe(value: object) -> str:
    """Describe a value for error messages: type, and shape and kind of arrays and tensors."""
    name = type(value).__name__
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{name} of shape {tuple(value.shape)} and type {value.dtype}"
    return name


def to_rgb(image: Image.Image, scales: Mapping[str, float] | None = None) -> Image.Image:
    """Convert an image to RGB, 8 bits a channel; of several frames, the first.

    Deeper images are scaled down (PIL's own conversion clips their values); transparency is
    dropped, as by ``convert("RGB")``.

    Args:
        image: an image of any mode.
        scales: the data set's :func:`deep_scales`. Default: 16-bit values lose their lower 8 bits,
            and wider ones too, if any lies above 255; floats up to 1 are multiplied by 255.
    """
    if image.tell() != 0:
        image.seek(0)
    if image.mode == "RGB":
        image.load()
        return image
    if is_deep(image):
        return Image.fromarray(_to_8_bits(np.asarray(image), scales or {})).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # By way of RGBA: straight to RGB, PIL warns about transparency given as bytes.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def deep_scales(images: Iterable[object]) -> dict[str, float]:
    """Find by what values of more than 8 bits are multiplied to lie in [0, 255].

    Cameras and scanners keep 10, 12 or 14 bits in 16; 8 bits fewer of those are almost black. The
    largest value of some images of a data set decides for the whole data set, since a factor for
    each image would make dark images and bright ones alike.

    Args:
        images: some of the data set's images; those of 8 bits count for nothing.

    Returns:
        The factor for integers under ``"i"``, for the floats of PIL images under ``"f"``.
    """
    largest: dict[str, float] = {}
    for image in images:
        array = as_array(image)
        if array is None or array.dtype in (np.uint8, np.bool_):
            continue
        kind = "f" if array.dtype.kind == "f" else "i"
        if kind == "f" and not isinstance(image, Image.Image):
            continue  # floats of arrays and tensors must lie in [0, 1]
        top = float(np.nanmax(np.where(np.isfinite(array), array, 0)))
        largest[kind] = max(top, largest.get(kind, 0.0))
    return {
        kind: 255.0 if kind == "f" and top <= 1 else 2.0 ** (8 - _bits_of(top))
        for kind, top in largest.items()
    }


def _bits_of(top: float) -> int:
    """Bits of the narrowest usual depth that holds a value."""
    return next((bits for bits in BITS if top < 2**bits), int(top).bit_length())


def check_size(width: int, height: int, resized_to: int) -> None:
    """Refuse an image that would be huge when its shorter edge is scaled to ``resized_to``.

    Large photographs pass, since they shrink; how large a file may be is Pillow's own limit.

    Args:
        width: width of the stored image, in pixels.
        height: height of the stored image, in pixels.
        resized_to: shorter edge after the resize, in pixels.

    Raises:
        PIL.Image.DecompressionBombError: the image has more than 2**26 pixels after the resize.
    """
    scale = resized_to / max(min(width, height), 1)
    wide, high = round(width * scale), round(height * scale)
    if wide * high > MAX_RESIZED_PIXELS:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels become {wide} x {high} when the shorter edge is scaled to "
            f"{resized_to}; at most {MAX_RESIZED_PIXELS} pixels are processed"
        )


def check_file(path: str | None, resized_to: int = RESIZED_TO) -> None:
    """Refuse a file by :func:`check_size`, from its header alone; what is no image passes.

    Raises:
        PIL.Image.DecompressionBombError: see :func:`check_size`, or Pillow's own limit.
    """
    try:
        with Image.open(path or "") as image:
            size = image.size
    except Image.DecompressionBombError:
        raise
    except Exception:  # whoever reads the sample will find out what is wrong with the file
        return
    check_size(*size, resized_to)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F"


def _is_encoded(value: object) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    return isinstance(value, bytes)


def open_encoded(value: bytes | Mapping[str, object]) -> Image.Image:
    """Open an image file, from its bytes or as an undecoded column holds it, without decoding."""
    data = value if isinstance(value, bytes) else value["bytes"]
    if isinstance(data, bytes):
        return Image.open(BytesIO(data))
    assert isinstance(value, Mapping)
    return Image.open(str(value["path"]))


def _from_array(
    array: np.ndarray, channels_first: bool, scales: Mapping[str, float]
) -> Image.Image:
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
        array = _to_8_bits(array, scales)
    return Image.fromarray(np.ascontiguousarray(array))


def _from_unit_floats(array: np.ndarray) -> np.ndarray:
    check_finite(array)
    low, high = float(array.min()), float(array.max())
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):
        raise UnusableValuesError(
            "out_of_range",
            f"expected image values in [0, 1], got [{low:.4g}, {high:.4g}]. If other images are "
            "like this, they are normalised: pass clip_dataset=, the same samples in the same "
            "order without normalisation",
        )
    return np.rint(array.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def check_finite(values: np.ndarray | torch.Tensor) -> None:
    """Refuse an image with values that aren't finite.

    Raises:
        UnusableValuesError: some values are NaN or infinite; the message counts them.
    """
    finite = values.isfinite() if isinstance(values, torch.Tensor) else np.isfinite(values)
    if not bool(finite.all()):
        size = int(np.prod(values.shape))
        raise UnusableValuesError(
            "nonfinite", f"{size - int(finite.sum())} of {size} values are NaN or infinite"
        )


def _to_8_bits(array: np.ndarray, scales: Mapping[str, float]) -> np.ndarray:
    """Convert wider values to uint8, by the factor for their kind or else one for this image."""
    if array.dtype.kind == "f":
        check_finite(array)
        top = array.max(initial=0)
        own = 255.0 if top <= 1.0 else 2.0**-8 if top > 255.0 else 1.0
        values = np.rint(array.astype(np.float64) * scales.get("f", own))
    else:
        if array.min(initial=0) < 0:
            raise UnusableValuesError(
                "out_of_range",
                f"expected image values of 0 or more, got {int(array.min())}. Pass clip_dataset=, "
                "the same samples in the same order as images of 8 or 16 bits",
            )
        is_16_bit = array.dtype.kind == "u" and array.dtype.itemsize == 2
        own = 2.0**-8 if is_16_bit or array.max(initial=0) > 255 else 1.0
        values = np.floor(array.astype(np.float64) * scales.get("i", own))
    return np.clip(values, 0, 255).astype(np.uint8)
