"""Telling why a sample could not be read, and whether memory ran out."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from cgd_wrap.data.paths import image_path
from cgd_wrap.data.pixels import UnusableValuesError
from cgd_wrap.errors import BadSampleError, CGDError

# How torch words it on a CPU (Linux, Windows) and on devices other than NVIDIA's.
MEMORY_SHORT = ("can't allocate memory", "not enough memory", "out of memory")


def bad_sample(error: BaseException, index: int, dataset: Any) -> BadSampleError:
    """Turn any error of reading sample ``index`` into one that names the sample and its file."""
    path = image_path(dataset, index)
    values = isinstance(error, UnusableValuesError)
    message = str(error) if values else f"{type(error).__name__}: {error}"
    return BadSampleError(index, classify_failure(error, path), message, path)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of this machine or of its GPU ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_SHORT)


@contextmanager
def memory_explained(where: str) -> Iterator[None]:
    """Say in words where memory ran out, and what would need less of it.

    Raises:
        CGDError: memory ran out within the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise CGDError(f"memory ran out {where}: {error}") from error


def classify_failure(error: BaseException, path: str | None = None) -> str:
    """Turn the error of an unreadable sample into a short code.

    Args:
        error: the error that was raised; its causes are searched, too.
        path: file of the sample, or None where the file isn't known.

    Returns:
        ``"empty"``, ``"not_image"``, ``"truncated"``, ``"corrupt"``, ``"too_large"``,
        ``"nonfinite"``, ``"out_of_range"``, ``"missing"``, ``"no_permission"``, ``"io_error"`` or
        ``"getitem_failed"``.
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
    if isinstance(error, (BadSampleError, UnusableValuesError)):
        return error.reason
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too_large"
    if ran_out_of_memory(error):
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
