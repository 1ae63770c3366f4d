"""Exposure: suspicious images are blended into some clean images, whose labels stay.

A clean split that holds nothing like the trigger can't teach a model to ignore the trigger. If
suspicious images are blended into clean images of every class, the trigger says nothing of the
label, and the model learns to ignore it. Images are blended as in mixup (arXiv 1710.09412), but the
label isn't mixed; the name "exposure" is borrowed from outlier exposure (arXiv 1812.04606).

A trigger may also be nothing but an image's tone. So some clean images take on only the tone of a
suspicious image (mean and spread of each channel), as in colour transfer (Reinhard et al., "Color
Transfer between Images", 2001), and nothing of what the suspicious image shows.

Which images are blended is decided with the order of an epoch, not when an image is read. The
choice is therefore the same on every process, for any number of workers, and after a resume,
however the order is cut into batches. It travels with the index of a sample: see :class:`Draw`.

The suspicious image mostly lies near in the order, in the window of the clean draw (see
:mod:`cgd_wrap.train.order`): a batch then holds it already, and no second image is read. A host
that shuffles anew, or deals neighbours to several processes, has to read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cgd_wrap.train.keyed import uniform

EARLY_PART = 0.5  # share of a training's epochs that are early, where nothing else is said
INDEX_BITS = 28  # enough for 268 million samples
LEVEL_BITS = 5
LEVELS = 1 << LEVEL_BITS
NUMBERS = 5  # random numbers that decide on the exposure of a sample
SHARING = 4  # windows that share a partner from far away: as many places as batches mostly have
TONE = 1 << (2 * INDEX_BITS + LEVEL_BITS)
MARK = 2 * TONE  # bit 62, the highest bit that leaves an int64 positive: marks a packed index


@dataclass(frozen=True, eq=False)
class Exposure:
    """How often, how strongly, and with which suspicious images clean images are blended.

    Attributes:
        weight: how often each sample is blended into clean images, relative to the other samples,
            float32 [N].
        rate: share of the clean draws that are exposed, in [0, 1].
        strength: largest share of the suspicious image in a blend, in [0, 1).
        epochs: number of early epochs; None means EARLY_PART of a training's epochs, or all epochs
            if the length of the training isn't known.
        early: part of ``rate`` that early epochs have, in [0, 1].
        late: part of ``rate`` that later epochs have, in [0, 1].
        tone: share of the exposures that pass on the suspicious image's tone alone, in [0, 1].

    Raises:
        ValueError: there are more samples than an index has bits for.
    """

    weight: Float[Tensor, "n"]
    rate: float
    strength: float
    epochs: int | None = None
    early: float = 1.0
    late: float = 0.0
    tone: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weight) > 1 << INDEX_BITS:
            raise ValueError(
                f"exposure_rate works for up to {1 << INDEX_BITS} samples, got "
                f"{len(self.weight)}: set it to 0"
            )

    def rate_in(self, epoch: int, run: int | None = None) -> float:
        """Share of an epoch's clean draws that are exposed.

        Args:
            epoch: number of the epoch, from 0.
            run: epochs of the training, or None if not known.
        """
        count = self.epochs
        if count is None:
            count = epoch + 1 if run is None else math.ceil(EARLY_PART * run)
        return self.rate * (self.early if epoch < count else self.late)

    def over(
        self,
        indices: np.ndarray,
        slots: np.ndarray,
        near: Near,
        rate: float,
        keys: Sequence[np.uint64],
    ) -> np.ndarray:
        """Choose clean samples for exposure, and pack the suspicious sample into the index of each.

        Args:
            indices: indices of clean samples.
            slots: number of each sample's slot in the epoch.
            near: suspicious draws that lie near each sample in the epoch's order.
            rate: share of the samples that are exposed, from :meth:`rate_in`.
            keys: decide, with the slot, whether a sample is exposed, to which suspicious sample,
                how strongly, and whether to its tone alone; and, with the window, to which
                suspicious sample from anywhere; NUMBERS keys.
        """
        if not len(self._others[0]):
            return indices
        chosen = (uniform(slots, keys[0]) < rate).nonzero()[0]
        slots = slots[chosen]
        other = self._partners(near, chosen, uniform(slots, keys[1]), keys[4])
        share, tone = uniform(slots, keys[2]), uniform(slots, keys[3]) < self.tone
        share = np.where(tone, share, self.strength * share)
        level = (share * LEVELS).round().astype(np.int64).clip(max=LEVELS - 1)
        shown = level > 0
        packed = indices.copy()
        packed[chosen[shown]] = pack(
            indices[chosen[shown]], other[shown], level[shown], tone[shown]
        )
        return packed

    def _partners(
        self, near: Near, chosen: np.ndarray, number: np.ndarray, key: np.uint64
    ) -> np.ndarray:
        """A suspicious sample for each of the chosen samples, by a random number in [0, 1)."""
        others, cumulated = self._others
        places = uniform(near.window[chosen] // SHARING, key) * cumulated[-1]
        found: np.ndarray = others[np.searchsorted(cumulated, places).clip(max=len(others) - 1)]
        ends = near.chances.cumsum(axis=1)
        row = near.row[chosen]
        pick = (ends[row] <= number[:, None]).sum(axis=1)
        is_near = pick < ends.shape[1]
        found[is_near] = near.others[row[is_near], pick[is_near]]
        return found

    @cached_property
    def _others(self) -> tuple[np.ndarray, np.ndarray]:
        """The suspicious samples, and the sums of their weights up to each."""
        others = self.weight.nonzero().squeeze(1)
        return others.numpy(), self.weight[others].double().cumsum(0).numpy()


@dataclass(frozen=True, eq=False)
class Near:
    """Suspicious draws that lie near some clean draws in the order of an epoch: in their windows.

    Attributes:
        others: indices of the suspicious samples in each of some windows, int64 [windows, most].
        weight: weight of each of these draws, float64 [windows, most]; 0 where a window has fewer
            draws. The draws of a sample share its weight.
        row: row of each clean draw's window in ``others``, int64.
        window: number of each clean draw's window, int64.
        heaviest: largest weight of any draw of the epoch.
    """

    others: np.ndarray
    weight: np.ndarray
    row: np.ndarray
    window: np.ndarray
    heaviest: float

    @property
    def chances(self) -> np.ndarray:
        """Probability that an exposed draw of a window gets each of the suspicious draws.

        ``w / (heaviest + the sum of the window's other weights)``. What is left to 1 belongs to a
        suspicious sample from anywhere. The divisor doesn't depend on w. So over an epoch each
        sample is expected as often as its weight says, whatever its neighbours are.
        """
        rest = self.weight.sum(axis=1, keepdims=True) - self.weight
        least = np.finfo(np.float64).tiny  # where no draw has a weight
        chances: np.ndarray = self.weight / np.maximum(rest + self.heaviest, least)
        return chances


class Draw(int):
    """An index of a sample that also says which other image is blended into the sample's image.

    Code that takes a draw for a plain index gets the plain image.

    Attributes:
        other: index of the other image.
        share: share of the other image in the blend, or of the other image's tone, in [0, 1).
        tone: whether the other image passes on its tone alone.
    """

    other: int
    share: float
    tone: bool

    def __new__(cls, index: int, other: int, share: float, tone: bool = False) -> Draw:
        """Make an int of the value ``index`` that carries the other arguments."""
        draw = super().__new__(cls, index)
        draw.other, draw.share, draw.tone = other, share, tone
        return draw

    def __getnewargs__(self) -> tuple[int, int, float, bool]:  # type: ignore[override]
        """Give pickle the arguments of :meth:`__new__`, so that draws can be sent to workers."""
        return int(self), self.other, self.share, self.tone


def pack(index: np.ndarray, other: np.ndarray, level: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Pack index, other index, share (in 32nds) and tone into an int64 above all plain indices."""
    packed: np.ndarray = (
        MARK | (TONE * tone) | (level << (2 * INDEX_BITS)) | (other << INDEX_BITS) | index
    )
    return packed


def unpack(packed: int) -> int:
    """Turn an index that :func:`pack` made into a :class:`Draw`; a plain index stays as it is."""
    if packed < MARK:
        return packed
    low = (1 << INDEX_BITS) - 1
    level = (packed >> (2 * INDEX_BITS)) & (LEVELS - 1)
    other = (packed >> INDEX_BITS) & low
    return Draw(packed & low, other, level / LEVELS, bool(packed & TONE))
