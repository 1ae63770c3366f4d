"""Seeded choices among samples, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

_COVER_STREAM = 101  # keeps the covers' random numbers apart from those that choose the samples


def shuffled(count: int, key: int | list[int]) -> Int64[Tensor, "count"]:
    """The numbers 0 to ``count - 1`` in an order that ``key`` decides."""
    # NumPy promises that PCG64's raw words never change; its permutations may, between releases.
    return torch.from_numpy(np.argsort(np.random.PCG64(key).random_raw(count), kind="stable"))


def others(total: int, taken: Int64[Tensor, "k"]) -> Int64[Tensor, "m"]:
    """Positions below ``total`` that are not among ``taken``, ascending."""
    is_free = torch.ones(total, dtype=torch.bool)
    is_free[taken] = False
    return torch.nonzero(is_free).flatten()


def by_score(
    scores: Float[Tensor, "n"], candidates: Int64[Tensor, "m"], total: int
) -> Int64[Tensor, "m"]:
    """Order in which candidates are poisoned: highest score first, equal scores as they stand.

    Raises:
        ValueError: there aren't ``total`` scores, one for each sample, or a score is NaN.
    """
    if len(scores) != total or bool(scores.isnan().any()):
        raise ValueError(
            f"the attack is ranked by {len(scores)} scores, {int(scores.isnan().sum())} of them "
            f"NaN, and the dataset has {total} samples; pass ranked_by() one number for each."
        )
    return torch.argsort(scores[candidates], descending=True, stable=True)


def covers_among(
    labels: Int[Tensor, "n"], poisoned: Int64[Tensor, "k"], ratio: float, seed: int
) -> Int64[Tensor, "c"]:
    """Choose covers among the samples that aren't poisoned: positions, ascending.

    Raises:
        ValueError: fewer samples are left than ``ratio`` for each poisoned one.
    """
    free, count = others(len(labels), poisoned), round(ratio * len(poisoned))
    if count > len(free):
        raise ValueError(
            f"a cover_ratio of {ratio} asks for {count} covers, and {len(free)} samples are not "
            "poisoned; lower it, or the rate."
        )
    return free[shuffled(len(free), [seed, _COVER_STREAM])[:count]].sort().values
