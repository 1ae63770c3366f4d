"""Giving the clean split to other defences of BackdoorBench, in place of clean training data.

Fine-pruning, ANP, I-BAU, MCR and others draw a few clean images from ``result["clean_train"]``. A
user whose training set is poisoned has no such images. Here ``clean_train`` becomes the clean split
of the poisoned training set: images and labels as they stand there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cgd_wrap.backdoorbench.awc import CLEAN_INDICES, FOLDER
from cgd_wrap.backdoorbench.errors import AttackResultError
from cgd_wrap.backdoorbench.safe_reading import allowed_globals
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)


class CleanSplit(Dataset[tuple[Any, int]]):
    """Some samples of a poisoned training set, as ``(PIL image, given label)``, with repeats.

    Args:
        poisoned: BackdoorBench's ``bd_train`` without its transform, or any dataset of
            ``(image, label, ...)``.
        indices: positions of the samples in ``poisoned``.
    """

    def __init__(self, poisoned: Any, indices: Sequence[int]) -> None:
        # A copy: defences take subsets of bd_train in place, which would move every position.
        self.poisoned, self.indices = copy.copy(poisoned), list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label, *_ = self.poisoned[self.indices[index]]
        return image, label


def read_clean_indices(
    result_folder: str | Path, *, max_size: int | None = None, seed: int = 0
) -> list[int]:
    """Read the balanced clean split that the defence wrote to ``AWC/clean_indices.json``.

    Args:
        result_folder: ``record/<name>``.
        max_size: draw at most this many indices at random, without putting back; BackdoorBench's
            own clean data are usually 5% of the training set, the split about 70%.
        seed: seed of the draw.

    Raises:
        FileNotFoundError: the defence hasn't been run on this result.
        ValueError: the file holds something else, or ``max_size`` is below 1.
    """
    path = Path(result_folder) / FOLDER / CLEAN_INDICES
    if not path.is_file():
        raise FileNotFoundError(
            f"no clean split at {str(path)!r}: run the CGD defence on this result first "
            "(defense/cgd.py, or cgd-wrap defend --backdoorbench)"
        )
    try:
        indices = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        indices = None
    plain = isinstance(indices, list) and all(type(i) is int and i >= 0 for i in indices)
    if not plain or not indices:
        raise ValueError(f"{str(path)!r} must hold a list of indices")
    if max_size is None:
        return list(indices)
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    order = np.random.default_rng(seed).permutation(len(indices))
    return [indices[k] for k in order[:max_size].tolist()]


def use_clean_split(result: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """Replace the images of ``result["clean_train"]`` by the clean split; its transform stays.

    Args:
        result: what BackdoorBench's ``load_attack_result`` returns; changed in place.
        indices: positions of the clean split in ``result["bd_train"]``.

    Raises:
        AttackResultError: the result has no poisoned training set, or the set is too small.
    """
    poisoned = result.get("bd_train")
    if poisoned is None:
        raise AttackResultError("this result holds no poisoned training set to split")
    raw = poisoned.wrapped_dataset
    if max(indices) >= len(raw):
        raise AttackResultError(
            f"the clean split names sample {max(indices)}, but the training set has {len(raw)}: "
            "it was made for another result"
        )
    result["clean_train"].wrapped_dataset = CleanSplit(raw, indices)
    logger.info("Clean data: %d samples of the clean split of the poisoned set.", len(indices))
    return result


def splitting_loader(
    load_attack_result: Callable[..., dict[str, Any]], *, max_size: int | None = None, seed: int = 0
) -> Callable[..., dict[str, Any]]:
    """Wrap BackdoorBench's ``load_attack_result`` so that it hands out the clean split.

    The file is read with :func:`~cgd_wrap.backdoorbench.safe_reading.allowed_globals`, without
    which torch 2.6 and later refuse it.

    Args:
        load_attack_result: BackdoorBench's own function.
        max_size: as for :func:`read_clean_indices`.
        seed: as for :func:`read_clean_indices`.
    """

    def load(save_path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.serialization.safe_globals(allowed_globals()):
            result = load_attack_result(save_path, *args, **kwargs)
        folder = Path(save_path).parent
        return use_clean_split(result, read_clean_indices(folder, max_size=max_size, seed=seed))

    return load
