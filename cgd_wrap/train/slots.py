"""The slots of an epoch: how often each sample is drawn, before an order mixes the slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.functional import class_draws, members_by_class
from cgd_wrap.train.keyed import below


@dataclass(frozen=True, eq=False)
class Slots:
    """One slot for each draw of an epoch: balanced clean samples by class, then the others.

    The slots of a class hold each of its clean samples once. In the slots that are left, clean
    samples of the class are drawn with replacement, anew in each epoch. All epochs have the same
    slots, so they are made once; 4 bytes for each slot that doesn't change.

    Attributes:
        members: clean samples by class, int32.
        counts: number of clean samples of each class.
        draws: number of slots of each class.
        others: the samples in the slots after those of the classes, int32.
    """

    members: Int[Tensor, "k"]
    counts: Int[Tensor, "classes"]
    draws: Int[Tensor, "classes"]
    others: Int[Tensor, "m"]

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, "n"],
        clean: Bool[Tensor, "n"],
        times: Int[Tensor, "n"],
        growth: float | None,
    ) -> Slots:
        """Make the slots of all epochs.

        Args:
            labels: given labels.
            clean: samples to balance over the classes.
            times: how often each sample appears besides.
            growth: as for :func:`~cgd_wrap.functional.split.class_draws`.
        """
        by_class = members_by_class(labels, clean)
        counts = torch.tensor([len(members) for members in by_class], dtype=torch.int64)
        more = times.nonzero().squeeze(1)
        return cls(
            members=torch.cat([torch.empty(0, dtype=torch.int64), *by_class]).int(),
            counts=counts,
            draws=class_draws(counts, growth),
            others=more.repeat_interleave(times[more]).int(),
        )

    def __len__(self) -> int:
        return self.balanced + len(self.others)

    @property
    def balanced(self) -> int:
        """Number of slots of clean samples, which come first."""
        return int(self.draws.sum())

    def samples(self, slots: np.ndarray, key: np.uint64) -> np.ndarray:
        """The samples in some slots, int64.

        Args:
            slots: numbers of slots.
            key: decides, with the slot's number, which sample fills a slot that is left.
        """
        found = np.empty(len(slots), dtype=np.int64)
        is_balanced = slots < self.balanced
        found[~is_balanced] = self.others.numpy()[slots[~is_balanced] - self.balanced]
        slots = slots[is_balanced]
        ends, counts = self.draws.numpy().cumsum(), self.counts.numpy()
        label = np.searchsorted(ends, slots, side="right")
        place = slots - (ends - self.draws.numpy())[label]
        count = counts[label]
        place = np.where(place < count, place, below(slots, key, count))
        found[is_balanced] = self.members.numpy()[(counts.cumsum() - counts)[label] + place]
        return found
