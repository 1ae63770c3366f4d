"""Hashing the pixels of a few samples, to notice that a dataset has other images now."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.data.leaves import joined
from cgd_wrap.data.probes import spread
from cgd_wrap.data.reading import read_values
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.errors import BadSampleError


def sample_fingerprint(
    view: Any,
    count: int = 64,
    *,
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> str:
    """Hash the pixels of evenly spaced samples; an unreadable sample counts by its reason.

    Args:
        view: gives PIL images or tensors by index, as ``RawImages`` and ``EvaluatedImages`` do.
        count: number of samples to read.
        workers: the processes that read.
        known: samples that are known to be bad; they count by their reason, and aren't read.

    Returns:
        32 hexadecimal digits.
    """
    total = blake2b(str(len(view)).encode(), digest_size=16)
    for found in pixel_hashes(view, spread(len(view), count), workers=workers, known=known):
        total.update(found)
    return total.hexdigest()


def pixel_hashes(
    view: Any,
    indices: Sequence[int],
    *,
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> list[bytes]:
    """Hash the pixels of each of some samples, or the reason why the sample can't be read."""
    return [
        joined("sample", [b"bad", found.reason.encode()])
        if isinstance(found, BadSampleError)
        else found
        for found in read_values(_Hashed(view), indices, workers, known)
    ]


class _Hashed(Dataset[bytes]):
    """The hash of each image of a view: much less to send from a worker than the image."""

    def __init__(self, view: Any) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> bytes:
        return joined("sample", _pixels(self.view[index]))


def _pixels(image: Image.Image | torch.Tensor) -> list[bytes]:
    if isinstance(image, Image.Image):
        return [image.mode.encode(), repr(image.size).encode(), image.tobytes()]
    flat = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(image.dtype).encode(), repr(tuple(image.shape)).encode(), flat.numpy().tobytes()]
