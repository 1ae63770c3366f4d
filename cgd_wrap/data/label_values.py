"""Converting labels of any kind to class numbers, losslessly or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cgd_wrap.errors import DatasetError

SHOWN = 10


def as_class_indices(values: Any, num_classes: int | None) -> Int64[Tensor, " n"]:
    """Convert labels of any kind to whole class numbers, losslessly.

    Integers, integral floats, [N, 1] columns and one-hot rows are converted.

    Args:
        values: the labels.
        num_classes: labels must be in [0, num_classes); None checks for negative ones only.

    Raises:
        DatasetError: a label is anything else; the message lists the first 10 such samples.
    """
    numbers, bad = _convert_array(values)
    if numbers is None:
        numbers, bad = _convert_each(values)
    high = np.iinfo(np.int64).max if num_classes is None else num_classes
    wrong = bad | (numbers < 0) | (numbers >= high)
    if wrong.any():
        indices = np.flatnonzero(wrong)
        shown = ", ".join(f"sample {i}: {_shown(values[i])}" for i in indices[:SHOWN].tolist())
        bound = "0 or more" if num_classes is None else f"in [0, {num_classes})"
        raise DatasetError(
            f"{len(indices)} of {len(numbers)} labels are unusable: expected whole numbers "
            f"{bound} (or one-hot rows), got {shown}{', ...' if len(indices) > SHOWN else ''}. "
            "Correct them, for example with the dataset's target_transform"
        )
    return torch.from_numpy(numbers)


def _convert_array(values: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """Convert all labels at once, if they form a numeric array; else return (None, ...)."""
    none = np.zeros(0, dtype=bool)
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.array(values)
    except (ValueError, TypeError, RuntimeError):
        return None, none
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        return None, none
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        ones, zeros = (array == 1).sum(axis=1), (array == 0).sum(axis=1)
        bad = (ones != 1) | (zeros != array.shape[1] - 1)
        return array.argmax(axis=1).astype(np.int64), bad
    bad = np.zeros(len(array), dtype=bool)
    if array.dtype.kind == "f":
        # Beyond 2**53 a double no longer holds every whole number.
        bad = ~(np.abs(array) < 2.0**53) | (array != np.floor(array))
        array = np.where(bad, 0, array)
    return array.astype(np.int64), bad


def _convert_each(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Convert labels of mixed kinds one by one: class numbers, and which labels are unusable."""
    numbers = np.zeros(len(values), dtype=np.int64)
    bad = np.zeros(len(values), dtype=bool)
    for index, value in enumerate(values):
        number = None if isinstance(value, (str, bytes)) else _convert_array([value])
        if number is None or number[0] is None or len(number[0]) != 1 or number[1][0]:
            bad[index] = True
        else:
            numbers[index] = number[0][0]
    return numbers, bad


def _shown(value: Any) -> str:
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
    text = repr(plain)
    return text if len(text) <= 40 else text[:37] + "..."


def same_label(first: Any, second: Any) -> bool:
    """Whether two labels mean the same class; two unusable labels count as equal."""
    one, two = _convert_each([first]), _convert_each([second])
    if one[1][0] or two[1][0]:
        return bool(one[1][0] and two[1][0])
    return bool(one[0][0] == two[0][0])
