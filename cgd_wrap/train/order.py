"""The order of an epoch: shuffled, with the samples that aren't balanced spread evenly over it.

The order is cut into windows of WINDOW places. Balanced samples and others are each shuffled, and
dealt to the windows, so that a window holds its share of the others, one more or less. Within a
window the places are mixed. So each batch has its share of the others, and wherever a clean sample
lies, others lie near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cgd_wrap.train.keyed import ROUNDS, bits, permuted, uniform

# Batches hold whole windows if their size is a multiple of this, as it mostly is.
WINDOW = 32
ORDER_KEYS = 2 + 2 * ROUNDS  # keys that decide an order


@dataclass(frozen=True, eq=False)
class Order:
    """The slots of an epoch, place by place; any part of the order is made without the rest.

    Attributes:
        balanced: number of slots of balanced samples, which are the first slots.
        others: number of the slots after these.
        keys: decide the order; ORDER_KEYS keys.
    """

    balanced: int
    others: int
    keys: Sequence[np.uint64]

    def slots(self, places: np.ndarray) -> np.ndarray:
        """The slots at some places of the order, int64."""
        windows, row = np.unique(places // WINDOW, return_inverse=True)
        inside = windows[:, None] * WINDOW + np.arange(WINDOW)
        mixed = bits(inside, self.keys[1])
        mixed[inside >= self.balanced + self.others] = np.iinfo(np.uint64).max  # come last
        rank = mixed.argsort(axis=1, kind="stable").argsort(axis=1)[row, places % WINDOW]
        before, count = self._dealt(windows)
        before, count = before[row], count[row]
        is_other = rank < count
        found = np.empty(len(places), dtype=np.int64)
        found[is_other] = self._other((before + rank)[is_other])
        number = (places // WINDOW * WINDOW - before + rank - count)[~is_other]
        found[~is_other] = permuted(number, self.balanced, list(self.keys[2 : 2 + ROUNDS]))
        return found

    def others_in(self, windows: np.ndarray) -> np.ndarray:
        """The slots of the others in some windows, int64 [windows, most]; -1 where there are fewer.

        Args:
            windows: numbers of windows; the window of a place is ``place // WINDOW``.
        """
        before, count = self._dealt(windows)
        number = np.arange(count.max(initial=0))
        there = number < count[:, None]
        found = np.full(there.shape, -1, dtype=np.int64)
        found[there] = self._other((before[:, None] + number)[there])
        return found

    def _other(self, numbers: np.ndarray) -> np.ndarray:
        return self.balanced + permuted(numbers, self.others, list(self.keys[2 + ROUNDS :]))

    def _dealt(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many others the windows before each window hold, and how many the window holds."""
        size = self.balanced + self.others
        # Where the rounding starts is random, or the last windows would always hold one more.
        start = int(uniform(np.zeros(1), self.keys[0])[0] * size)
        ends = np.minimum(np.stack([windows, windows + 1]) * WINDOW, size)
        before, after = (ends * self.others + start) // max(size, 1)
        return before, after - before
