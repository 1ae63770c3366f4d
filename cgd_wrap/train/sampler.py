"""The sampler that yields an epoch's samples, for one or several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler, Sampler

from cgd_wrap.config import CGDConfig
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import unpack
from cgd_wrap.train.place import Place, check_state

BLOCK = 1 << 12  # indices that are made at a time: the first ones come within milliseconds


class BalancedSampler(Sampler[int]):
    """Yields an epoch's indices of the guarded dataset, shuffled; exposed samples as ``Draw``.

    Every process yields the same order, as Accelerate and Lightning expect, which then divide the
    indices among the processes. With ``num_replicas``, the sampler divides the indices itself, as
    ``DistributedSampler`` does (the first indices are repeated at the end, so that all processes
    get equally many). With ``batch_size``, it deals them batch by batch: what lies together in the
    epoch's order, as the images of a blend do, comes to one process. The epoch advances with each
    pass, unless :meth:`set_epoch` sets another.

    Args:
        epochs: which samples an epoch holds.
        num_replicas: number of processes that share the indices.
        rank: number of this process.
        drop_last: leave the last indices out instead of repeating the first.
        batch_size: indices that a process gets in a row.
        replaced: the user's sampler, whose epoch is followed.

    Attributes:
        epochs: which samples an epoch holds.
        place: where the sampler is in the training.
    """

    def __init__(
        self,
        epochs: EpochIndices,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        batch_size: int = 1,
        replaced: Any = None,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas}), got {rank}")
        self.epochs = epochs
        len(epochs)  # makes the slots, which no epoch has to wait for then
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.batch_size = batch_size
        self.place = Place(replaced)

    @classmethod
    def for_result(
        cls, result: ScanResult, config: CGDConfig | None = None, **sharding: Any
    ) -> BalancedSampler:
        """Make the sampler of a scanned data set: ``BalancedSampler.for_result(guard.result)``.

        Args:
            result: result of the scan.
            config: configuration of the training. Default: that of the scan.
            sharding: ``num_replicas``, ``rank``, ``drop_last`` and ``batch_size``.
        """
        return cls(EpochIndices.for_result(result, config or result.config), **sharding)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.epochs), self.num_replicas)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that the next pass yields, from 0."""
        return self.place.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.place.tell(epoch)

    def __iter__(self) -> Iterator[int]:
        return SamplerPass(self)

    def share_of(self, epoch: int, positions: range) -> list[int]:
        """This process' indices of an epoch at some positions, packed with their exposures."""
        position = np.asarray(positions, dtype=np.int64)
        start = position // self.batch_size * self.batch_size
        length = np.minimum(self.batch_size, len(self) - start)  # the last batch may be shorter
        places = start * self.num_replicas + self.rank * length + position - start
        found: list[int] = self.epochs.at(epoch, places % len(self.epochs)).tolist()
        return found

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; a restored position is kept if the epoch is its own."""
        self.place.tell(epoch)

    def set_run(self, epochs: int | None) -> None:
        """Say how many epochs the training has, as ``protect(..., epochs=)`` does for a loader."""
        self.epochs = self.epochs.in_run_of(epochs)

    def state_dict(self) -> dict[str, Any]:
        """The place that the sampler has come to, as JSON values.

        ``position`` counts the indices of the epoch that were handed out to this process. The
        workers of a plain ``DataLoader`` are ahead of the training by some batches: there, set
        ``epoch`` and ``position`` to what was trained on. Stateful loaders count for themselves.
        """
        epoch, position = self.place.now()
        return {
            "epoch": epoch, "position": position, **self.epochs.state_dict(),
            "num_replicas": self.num_replicas, "batch_size": self.batch_size,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on at a saved place: the next pass yields the rest of its epoch.

        Raises:
            CacheMismatchError: the state is of other data, another split or another number of
                processes, or within an epoch that was dealt to these in other batches; what differs
                is named.
        """
        sharding = {"num_replicas": self.num_replicas}
        if self.num_replicas > 1 and state_dict["position"]:
            sharding["batch_size"] = self.batch_size
        check_state(state_dict, self.epochs.identity | sharding)
        self.epochs = self.epochs.restored(state_dict)
        self.place.restore(state_dict["epoch"], state_dict["position"])


class SamplerPass(Iterator[int]):
    """A pass of a sampler; it begins with its first index, so that a loop can still set the epoch.

    A pass has a state of its own, for which torchdata asks: its workers may have drawn all indices,
    and the sampler be at the next epoch, while batches of this one are still to come.

    Args:
        sampler: the sampler.
    """

    def __init__(self, sampler: BalancedSampler) -> None:
        self.sampler = sampler
        self.epoch, self.position = -1, 0
        self._begun = False
        self._block: list[int] = []  # the indices at hand that are left, last first

    def __next__(self) -> int:
        index = self._block.pop() if self._block else self._first_of_next_block()
        self.position += 1
        self.sampler.place.move(self.epoch, self.position)
        return unpack(index)

    def _first_of_next_block(self) -> int:
        if not self._begun:
            self._begun = True
            self.epoch, self.position = self.sampler.place.begin()
        end = min(self.position + BLOCK, len(self.sampler))
        if self.position >= end:
            self.sampler.place.end()
            raise StopIteration
        self._block = self.sampler.share_of(self.epoch, range(self.position, end))[::-1]
        return self._block.pop()

    def state_dict(self) -> dict[str, int]:
        """Epoch and position; none before the first index."""
        return {"epoch": self.epoch, "position": self.position} if self._begun else {}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on at a saved place of this sampler."""
        if state_dict:
            self.epoch, self.position = state_dict["epoch"], state_dict["position"]
            self._begun, self._block = True, []
            self.sampler.place.enter(self.epoch, self.position)


class ShardedSampler(BalancedSampler, DistributedSampler[int]):
    """A :class:`BalancedSampler` for several processes; hosts take it for a DistributedSampler."""
