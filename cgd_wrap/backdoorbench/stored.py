"""``bd_train`` and ``bd_test`` of a result: which samples are replaced by a stored image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredSamples:
    """The samples of a set, by position.

    Attributes:
        original_index: where each stands in the clean data set, int64 [N].
        stored: whether it has an image of its own in the result folder, bool [N].
        given: label that a stored sample carries, int64 [N]; -1 for others.
        original: its label before the attack, int64 [N]; -1 for others.
        files: path of its image; None for others.
        clean_length: number of samples of the clean data set.
    """

    original_index: Int64[Tensor, "n"]
    stored: Bool[Tensor, "n"]
    given: Int64[Tensor, "n"]
    original: Int64[Tensor, "n"]
    files: tuple[str | None, ...]
    clean_length: int

    def __len__(self) -> int:
        return len(self.original_index)


def read_stored(
    state: Mapping[str, Any], name: str, folder: Path, num_classes: int, faults: list[str]
) -> StoredSamples | None:
    """Check a set's state and find its images.

    Args:
        state: of the file, untrusted.
        name: for messages.
        folder: the result folder; every image must lie in it.
        num_classes: labels must be in [0, num_classes).
        faults: what is wrong is added here.

    Returns:
        None if something is wrong.
    """
    index = _integers(state, "original_index_array", name, faults)
    indicator = _integers(state, "poison_indicator", name, faults)
    container = state.get("bd_data_container")
    entries = container.get("data_dict") if isinstance(container, Mapping) else None
    if not isinstance(entries, Mapping):
        faults.append(f"{name}: no data_dict in its bd_data_container")
    if index is None or indicator is None or not isinstance(entries, Mapping):
        return None
    if len(index) == 0 or index.min() < 0 or index.max() >= len(indicator):
        faults.append(f"{name}: original_index_array must hold indices below {len(indicator)}")
        return None
    assert isinstance(container, Mapping)
    base = PurePosixPath(_posix(container.get("save_folder_path"))).parent
    by_index = {int(key): entry for key, entry in entries.items()}
    stored = indicator[index] == 1
    given, original = (np.full(len(index), -1, dtype=np.int64) for _ in range(2))
    files: list[str | None] = [None] * len(index)
    problems: dict[str, list[int]] = {}
    root = folder.resolve()
    for position in np.flatnonzero(stored).tolist():
        sample = int(index[position])
        try:
            given[position], original[position] = _labels(by_index.get(sample), num_classes)
            files[position] = _image(by_index[sample]["path"], base, folder, root)
        except ValueError as error:
            problems.setdefault(str(error), []).append(sample)
    for problem, samples in problems.items():
        faults.append(f"{name}: {len(samples)} samples {problem}: {samples[:5]}")
    if problems:
        return None
    return StoredSamples(
        original_index=torch.from_numpy(index),
        stored=torch.from_numpy(stored),
        given=torch.from_numpy(given),
        original=torch.from_numpy(original),
        files=tuple(files),
        clean_length=len(indicator),
    )


def _integers(
    state: Mapping[str, Any], key: str, name: str, faults: list[str]
) -> np.ndarray | None:
    array = state.get(key)
    if isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iufb":
        whole = array.astype(np.int64)
        if np.array_equal(whole, array):
            return whole
    faults.append(f"{name}: {key} must be a row of whole numbers, got {type(array).__name__}")
    return None


def _labels(entry: Any, num_classes: int) -> tuple[int, int]:
    """Label that a stored sample carries, and its own."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise ValueError("are marked as stored and have no image path")
    info = entry.get("other_info")
    labels = [int(n) for n in info if isinstance(n, (int, np.integer))] if info else []
    if len(labels) != 2 or not all(0 <= label < num_classes for label in labels):
        raise ValueError(f"don't carry two labels in [0, {num_classes})")
    return labels[0], labels[1]


def _image(path: str, base: PurePosixPath, folder: Path, root: Path) -> str:
    """The stored image: its path within the result, wherever the result lay when it was made."""
    written = PurePosixPath(_posix(path))
    inside = written.relative_to(base) if written.is_relative_to(base) else None
    # Outside of its own folder's parent, the last parts still are <set>/<label>/<file>.
    parts = inside.parts if inside is not None else written.parts[-3:]
    found = folder.joinpath(*parts)
    real = found.resolve()
    if not real.is_relative_to(root):
        raise ValueError(f"name an image outside of {folder}")
    if not real.is_file():
        raise ValueError("lack their image (was the whole record folder copied?)")
    return str(found)


def _posix(path: Any) -> str:
    return str(path).replace("\\", "/")
