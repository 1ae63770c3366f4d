"""Reading files of BackdoorBench and of its data sets without running code that they hold."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgd_wrap.backdoorbench.errors import UnsafeFileError
from cgd_wrap.models.safe_loading import load_weights_only, why_not_loaded

try:
    from numpy._core import multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray  # type: ignore[no-redef]

# NumPy's module under both spellings: a file written with NumPy 1 says numpy.core.
_MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")


def allowed_globals() -> list[Any]:
    """List what ``torch.load`` may build from an ``attack_result.pt`` besides tensors.

    These are NumPy scalars and number arrays; pass the list to
    ``torch.serialization.safe_globals``.
    """
    named = [
        (getattr(multiarray, name), f"{module}.{name}")
        for name in ("scalar", "_reconstruct")
        for module in _MULTIARRAY
    ]
    return [*named, np.ndarray, np.dtype, np.dtypes.Int64DType, np.dtypes.Float64DType]


def load_result_file(path: Path) -> dict[str, Any]:
    """Read a dict that ``torch.save`` wrote, onto the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: the file needs more than tensors, numbers and number arrays; the message
            says what.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no BackdoorBench result at {str(path)!r}")
    try:
        loaded = load_weights_only(path, allowed_globals())
    except Exception as error:
        raise UnsafeFileError(f"{path} is refused: {_reason(path, error)}") from error
    if not isinstance(loaded, dict):
        raise UnsafeFileError(f"{path} is refused: it holds a {type(loaded).__name__}, not a dict")
    return loaded


def _reason(path: Path, error: Exception) -> str:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip file of torch
        return f"torch can't read it safely ({why_not_loaded(error)}). Nothing in it was run"
    known = {f"{module}.{name}" for module in _MULTIARRAY for name in ("scalar", "_reconstruct")}
    foreign = sorted(set(named) - known - {"numpy.ndarray", "numpy.dtype"})
    if any(name.startswith("PIL.") for name in foreign):
        return (
            "it holds pickled PIL images, the layout of BackdoorBench v1 (2023) or of a result "
            "kept in memory. Run the attack again with the current BackdoorBench, which stores "
            "its images as files. Nothing in it was run"
        )
    if not foreign:
        return f"it is damaged ({why_not_loaded(error)})"
    return f"it needs {foreign}, which could run any code. Nothing in it was run"


class _ArraysOnly(pickle.Unpickler):
    """Unpickles lists, texts and byte arrays only, which is all that CIFAR's files hold."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a function or class that the pickle names; only a short list is allowed."""
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
            **{(known, "_reconstruct"): multiarray._reconstruct for known in _MULTIARRAY},
        }
        if (module, name) not in allowed:
            raise UnsafeFileError(f"it needs {module}.{name}, which could run any code")
        return allowed[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode``, as pickle's protocol 2 writes bytes; latin-1 only."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeFileError(f"it needs the codec {encoding!r}")
    return text.encode("latin-1")


def load_pickled_arrays(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and lists, such as CIFAR's ``data_batch_1``.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: the file needs more than arrays and lists; nothing in it is executed.
    """
    try:
        loaded = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} is refused: {error}. Nothing in it was run") from error
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnsafeFileError(f"{path} is refused: it is damaged ({error})") from error
    if not isinstance(loaded, dict):
        raise UnsafeFileError(f"{path} is refused: it holds a {type(loaded).__name__}, not a dict")
    return loaded
