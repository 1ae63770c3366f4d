"""Reading ``bd_train`` and ``bd_test`` of an attack result: which samples the attack replaced."""

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
    """The samples of a training or test set after an attack, by position.

    Attributes:
        original_index: position of each sample in the clean data set, int64 [N].
        stored: samples that have an image of their own in the result folder, bool [N].
        given: label that a stored sample carries, int64 [N]; -1 for other samples.
        original: label of a stored sample before the attack, int64 [N]; -1 for other samples.
        files: path of each stored sample's image; None for other samples.
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
    """Check ``bd_train`` or ``bd_test`` of an attack result, and find the stored images.

    Args:
        state: the set as the file holds it, untrusted.
        name: name of the set, for messages.
        folder: the result folder; every image must lie in it.
        num_classes: labels must be in [0, num_classes).
        faults: list to which faults are added, as messages.

    Returns:
        The samples, or None if there are faults.
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
    """Read a stored sample's label after the attack, and before the attack."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise ValueError("are marked as stored and have no image path")
    info = entry.get("other_info")
    labels = [int(n) for n in info if isinstance(n, (int, np.integer))] if info else []
    if len(labels) != 2 or not all(0 <= label < num_classes for label in labels):
        raise ValueError(f"don't carry two labels in [0, {num_classes})")
    return labels[0], labels[1]


def _image(path: str, base: PurePosixPath, folder: Path, root: Path) -> str:
    """Find a stored image in the result folder, which may have been moved since the attack."""
    written = PurePosixPath(_posix(path))
    inside = written.relative_to(base) if written.is_relative_to(base) else None
    # Where the path doesn't start with the old folder, its last parts are <set>/<label>/<file>.
    parts = inside.parts if inside is not None else written.parts[-3:]
    found = folder.joinpath(*parts)
    real = found.resolve()
    if not real.is_relative_to(root):
        raise ValueError(f"name an image outside of {str(folder)!r}")
    if not real.is_file():
        raise ValueError("lack their image (was the whole record folder copied?)")
    return str(found)


def _posix(path: Any) -> str:
    # An attacker's value may be a list of lists without end: it isn't put into words.
    return path.replace("\\", "/") if isinstance(path, str) else ""
