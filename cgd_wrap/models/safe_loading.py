"""Reading pickled weights that may come from an attacker: nothing in the file is executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cgd_wrap.escaping import brief

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def no_pickled_code() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code in here, also where another library calls it.

    Needed around open_clip and timm: some versions ask for ``weights_only=False``, or try again
    without ``weights_only`` after an error. torch's own switch, an environment variable, overrules
    them, and is put back on leaving.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def load_weights_only(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Read onto the CPU what ``torch.save`` wrote: tensors, numbers, texts and their containers.

    Args:
        path: the file.
        allowed: classes and functions that may be built besides, for
            ``torch.serialization.safe_globals``.

    Raises:
        Exception: the file is damaged, or needs more to be read; of any kind, as torch raises it.
    """
    refuse_compressed(path)
    with no_pickled_code(), torch.serialization.safe_globals(list(allowed)):
        return torch.load(path, map_location="cpu", weights_only=True)


def why_not_loaded(error: Exception) -> str:
    """Say in a line why weights weren't read, without torch's advice to let the file run code."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "it is damaged, or holds more than tensors, numbers, texts and their containers"
    return brief(error)


def refuse_compressed(path: Path) -> None:
    """Refuse a zip file with compressed parts, which torch never writes and a zip bomb needs.

    Raises:
        ValueError: a part of the file is compressed; the message names the part.
    """
    if not zipfile.is_zipfile(path):  # torch's older formats can't hold compressed parts
        return
    with zipfile.ZipFile(path) as file:
        for part in file.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"its part {part.filename!r} is compressed ({part.compress_size} bytes that "
                    f"unpack to {part.file_size}), which torch.save never does"
                )
