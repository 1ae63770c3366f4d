"""Hashing the pixels of a few samples, to notice that a dataset has other images now."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from PIL import Image

from cgd_wrap.data.leaves import joined
from cgd_wrap.data.probes import spread
from cgd_wrap.errors import BadSampleError


def sample_fingerprint(view: Any, count: int = 64) -> str:
    """Hash the pixels of evenly spaced samples; an unreadable sample counts by its reason.

    Args:
        view: gives PIL images or tensors by index, as ``RawImages`` and ``EvaluatedImages`` do.
        count: number of samples to read.

    Returns:
        32 hexadecimal digits.
    """
    total = blake2b(str(len(view)).encode(), digest_size=16)
    for index in spread(len(view), count):
        total.update(pixel_hash(view, index))
    return total.hexdigest()


def pixel_hash(view: Any, index: int) -> bytes:
    """Hash the pixels of a view's sample, or the reason why the sample can't be read."""
    try:
        return joined("sample", _pixels(view[index]))
    except BadSampleError as error:
        return joined("sample", [b"bad", error.reason.encode()])


def _pixels(image: Image.Image | torch.Tensor) -> list[bytes]:
    if isinstance(image, Image.Image):
        return [image.mode.encode(), repr(image.size).encode(), image.tobytes()]
    flat = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(image.dtype).encode(), repr(tuple(image.shape)).encode(), flat.numpy().tobytes()]
