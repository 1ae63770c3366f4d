"""Which samples an epoch holds, how often, and in which order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.randomness import plain_torch
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.exposure import NUMBERS, Exposure, Near
from cgd_wrap.train.keyed import keys
from cgd_wrap.train.order import ORDER_KEYS, WINDOW, Order
from cgd_wrap.train.place import check_state, content_hash
from cgd_wrap.train.slots import Slots
from cgd_wrap.train.tags import SampleTable

MOST_REPEATS = 5  # most times that an epoch holds a sample
BLOCK = 1 << 14  # indices that are made at a time where all are
# Way in which seed and epoch decide the order: a saved state of another has other samples.
ORDER = 3


@dataclass
class Orders:
    """Whether the order of an epoch was made for any of a result's samplers and views."""

    made: bool = False


_orders: WeakKeyDictionary[ScanResult, Orders] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class EpochIndices:
    """The indices that each epoch holds: balanced clean samples, and others at given frequencies.

    Attributes:
        labels: given labels, int64 [N].
        clean: samples to balance over the classes, bool [N].
        times: how often each sample appears besides, such as a triggered sample, int64 [N].
        seed: seed of the balancing, the exposure and the order.
        exposure: how clean samples are exposed to suspicious images, or None.
        run: number of epochs of the training, where known.
        growth: as for :func:`~cgd_wrap.functional.split.class_draws`.
        orders: notes that an order was made; the same for all indices of a result.
    """

    labels: Int[Tensor, "n"]
    clean: Bool[Tensor, "n"]
    times: Int[Tensor, "n"]
    seed: int = 0
    exposure: Exposure | None = None
    run: int | None = None
    growth: float | None = None
    orders: Orders = field(default_factory=Orders)

    @classmethod
    def for_result(
        cls, result: ScanResult, config: CGDConfig, table: SampleTable | None = None
    ) -> EpochIndices:
        """Choose the samples of each epoch of a training on a scanned data set.

        Args:
            result: result of the scan.
            config: configuration of the training; settings that depend on whether the model was
                trained before are decided by the result.
            table: table of samples, of the same result and configuration. Default: made here.
        """
        split, config = result.split, config.decided(trained=result.trained)
        table = table or SampleTable.for_result(result, config)
        poison = split.triggered & (result.poison_probability > 0.5)
        times = (split.triggered | (split.mixed & config.keep_mixed)).long()
        times[poison] = repeats(int(poison.sum()), len(poison), config.poison_oversampling)
        return cls(
            labels=result.labels,
            clean=split.clean & ~result.held_out,
            times=times,
            seed=config.seed,
            exposure=_exposure(table, config),
            growth=config.max_epoch_growth,
            orders=_orders.setdefault(result, Orders()),
        )

    @cached_property
    def left_out(self) -> np.ndarray:
        """Samples that no epoch holds, bool: they are held out, unreadable or not wanted."""
        return (~(self.clean | (self.times > 0))).numpy()

    @cached_property
    @plain_torch()
    def slots(self) -> Slots:
        """The slots that all epochs have."""
        return Slots.of(self.labels, self.clean, self.times, self.growth)

    @cached_property
    def _length(self) -> int:
        return len(self.slots)

    def __len__(self) -> int:
        return self._length

    def of(self, epoch: int) -> Int[Tensor, "m"]:
        """Indices of an epoch, clean samples first; the same on every process and machine."""
        return self._in_blocks(lambda slots: self.slots.samples(slots, _keys(self.seed, epoch)[0]))

    def shuffled(self, epoch: int) -> Int[Tensor, "m"]:
        """Indices of an epoch in random order, packed with the epoch's exposures."""
        return self._in_blocks(lambda places: self.at(epoch, places))

    def at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Indices at some places of :meth:`shuffled`, int64, without the rest of the epoch."""
        self.orders.made = True
        filling, *others = _keys(self.seed, epoch)
        exposing, ordering = others[:NUMBERS], others[NUMBERS:]
        order = Order(self.slots.balanced, len(self.slots.others), ordering)
        slots = order.slots(places)
        indices = self.slots.samples(slots, filling)
        if self.exposure is not None:
            clean = slots < self.slots.balanced
            rate = self.exposure.rate_in(epoch, self.run)
            near = self._near(order, places[clean])
            indices[clean] = self.exposure.over(indices[clean], slots[clean], near, rate, exposing)
        return indices

    def _near(self, order: Order, places: np.ndarray) -> Near:
        """The suspicious draws in the windows of some places."""
        windows, row = np.unique(places // WINDOW, return_inverse=True)
        members = order.others_in(windows)
        others, weight = self._others
        place = np.maximum(members - self.slots.balanced, -1)
        return Near(
            others=others[place], weight=np.where(members < 0, 0, weight[place]),
            row=row, window=windows[row], heaviest=weight.max(initial=0),
        )  # fmt: skip

    @cached_property
    def _others(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples in the slots after the balanced ones, and each draw's weight in exposure."""
        assert self.exposure is not None
        others = self.slots.others.long()
        weight = self.exposure.weight[others].double() / self.times[others]
        return others.numpy(), weight.numpy()

    def _in_blocks(self, work: Callable[[np.ndarray], np.ndarray]) -> Int[Tensor, "m"]:
        """What some work makes of the numbers of all slots, block by block."""
        found = np.empty(len(self), dtype=np.int64)
        for start in range(0, len(found), BLOCK):
            found[start : start + BLOCK] = work(np.arange(start, min(start + BLOCK, len(found))))
        return torch.from_numpy(found)

    def in_run_of(self, epochs: int | None) -> EpochIndices:
        """Copy for a training of ``epochs`` epochs, which decides how many exposures each has."""
        return self.drawn_with(self.seed, epochs)

    def drawn_with(self, seed: int, run: int | None) -> EpochIndices:
        """Copy with another seed and run; slots and hash, which depend on neither, are shared."""
        twin = copy.copy(self)
        vars(twin).update(seed=seed, run=run)
        return twin

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a saved state must fit: numbers of samples, and a hash of what they are.

        Seed and run come with the state, and what was made of the indices so far doesn't count.
        """
        content = content_hash(replace(self, seed=0, run=None, orders=Orders()))
        return {
            "samples": len(self.labels), "length": len(self), "order": ORDER, "content": content,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Seed and run as JSON values, and what they were saved for."""
        return {"seed": self.seed, "run": self.run, **self.identity}

    def restored(self, state: Mapping[str, Any]) -> EpochIndices:
        """Copy with the seed and the run of a saved state.

        Raises:
            CacheMismatchError: the state is of other data or another split; what differs is named.
        """
        check_state(state, self.identity)
        return self.drawn_with(state["seed"], state["run"])


@lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> list[np.uint64]:
    """Keys of an epoch: of the slots that are filled up, of the exposure, and of the order."""
    return keys(seed, epoch, count=1 + NUMBERS + ORDER_KEYS)


def _exposure(table: SampleTable, config: CGDConfig) -> Exposure | None:
    """Make the exposure that a configuration asks for; None if the configuration asks for none."""
    if not config.exposure_rate or not config.exposure_strength:
        return None
    assert config.early_exposure is not None
    weight = table.tensors["triggered_weight"] * table.tensors["triggered"]
    return Exposure(
        weight=weight,
        rate=config.exposure_rate, strength=config.exposure_strength,
        epochs=config.exposure_epochs, early=config.early_exposure, late=config.late_exposure,
        tone=config.tone_exposure,
    )  # fmt: skip


def repeats(count: int, size: int, share: float) -> int:
    """How often each of ``count`` samples must appear to make up about ``share`` of ``size``.

    At least once, and at most MOST_REPEATS times: a few images are soon known by heart.
    """
    return min(max(round(share * size / max(count, 1)), 1), MOST_REPEATS)
