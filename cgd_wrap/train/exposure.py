"""Exposure: suspicious images shine through some clean ones, whose labels stay.

A clean split that holds nothing like the trigger can't teach a model to ignore it. Blending
suspicious images into clean ones of every class does: the trigger then says nothing of the label.
The blend is that of mixup (arXiv 1710.09412), but the label isn't mixed; the name is borrowed
from outlier exposure (arXiv 1812.04606). A trigger may also be in nothing but an image's tone: some
clean images take on a suspicious one's, mean and spread of each channel, as in colour transfer
(Reinhard et al., "Color Transfer between Images", 2001), and nothing of what it shows.

What is blended into what is decided with the order of an epoch, not when an image is read, so that
it is the same on every process, for any number of workers, and after a resume. It travels with the
index: see :class:`Draw`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.train.blending import blended, toned

EARLY_PART = 0.5  # of a training's epochs, where nothing else is said
INDEX_BITS = 28  # 268 million samples
LEVEL_BITS = 5
LEVELS = 1 << LEVEL_BITS
TONE = 1 << (2 * INDEX_BITS + LEVEL_BITS)
MARK = 2 * TONE  # bit 62: the largest that leaves int64 positive


@dataclass(frozen=True, eq=False)
class Exposure:
    """How often, how strongly, and by which images clean ones are blended.

    Attributes:
        weight: how often each sample is blended into others, relative to the rest, float32 [N].
        rate: share of the clean draws that are exposed, in [0, 1].
        strength: largest share of the other image, in [0, 1).
        epochs: how many are early; None: EARLY_PART of a training's, or all where its end isn't
            known.
        early: what part of the rate early epochs have, in [0, 1].
        late: what part of the rate the others have, in [0, 1].
        tone: share of the exposures that pass on the other image's tone alone, in [0, 1].

    Raises:
        ValueError: more samples than an index has bits for.
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
        """Share of the clean draws of an epoch, counted from 0, in a training of ``run`` epochs."""
        count = self.epochs
        if count is None:
            count = epoch + 1 if run is None else math.ceil(EARLY_PART * run)
        return self.rate * (self.early if epoch < count else self.late)

    def over(
        self, indices: Int[Tensor, "m"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "m"]:
        """Clean indices -> the same, some of them packed with another index and its share.

        Args:
            indices: of clean samples.
            rate: share of them, from :meth:`rate_in`.
            generator: decides which, with which other and how strongly.
        """
        others = self.weight.nonzero().squeeze(1)
        if not len(indices) or not len(others):
            return indices
        chosen = torch.rand(len(indices), generator=generator) < rate
        cumulated = self.weight[others].double().cumsum(0)
        place = torch.rand(len(indices), generator=generator, dtype=torch.float64) * cumulated[-1]
        other = others[torch.searchsorted(cumulated, place).clamp(max=len(others) - 1)]
        share = torch.rand(len(indices), generator=generator)
        tone = torch.rand(len(indices), generator=generator) < self.tone
        share = torch.where(tone, share, self.strength * share)
        level = (share * LEVELS).round().long().clamp(max=LEVELS - 1)
        return torch.where(chosen & (level > 0), pack(indices, other, level, tone), indices)


class Draw(int):
    """An index that says, too, which other image is blended in.

    Whoever takes it for a plain index gets the plain image.

    Attributes:
        other: index of the other image.
        share: of the other image in the blend, or of its tone, in [0, 1).
        tone: it passes on its tone alone.
    """

    other: int
    share: float
    tone: bool

    def __new__(cls, index: int, other: int, share: float, tone: bool = False) -> Draw:
        """An int of the value ``index``."""
        draw = super().__new__(cls, index)
        draw.other, draw.share, draw.tone = other, share, tone
        return draw

    def __getnewargs__(self) -> tuple[int, int, float, bool]:  # type: ignore[override]
        """For pickle, which takes draws to the workers."""
        return int(self), self.other, self.share, self.tone

    def shown(self, image: Any, other: Any) -> Any:
        """The image with the other one in it; see :func:`blended` and :func:`toned`."""
        return (toned if self.tone else blended)(image, other, self.share)


def pack(
    index: Int[Tensor, "m"],
    other: Int[Tensor, "m"],
    level: Int[Tensor, "m"],
    tone: Bool[Tensor, "m"],
) -> Int[Tensor, "m"]:
    """Index, other index, share (in 32nds) and kind as one int64, above every plain index."""
    return MARK | (TONE * tone) | (level << (2 * INDEX_BITS)) | (other << INDEX_BITS) | index


def unpack(packed: int) -> int:
    """What :func:`pack` made -> a :class:`Draw`; a plain index stays."""
    if packed < MARK:
        return packed
    low = (1 << INDEX_BITS) - 1
    level = (packed >> (2 * INDEX_BITS)) & (LEVELS - 1)
    other = (packed >> INDEX_BITS) & low
    return Draw(packed & low, other, level / LEVELS, bool(packed & TONE))
