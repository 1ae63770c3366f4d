"""Which samples an epoch holds, and the sampler that yields them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from cgd_wrap import functional
from cgd_wrap.config import CGDConfig
from cgd_wrap.randomness import plain_torch
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.exposure import Exposure, unpack
from cgd_wrap.train.tags import SampleTable

MOST_REPEATS = 5  # most times that an epoch holds a sample


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
    """

    labels: Int[Tensor, "n"]
    clean: Bool[Tensor, "n"]
    times: Int[Tensor, "n"]
    seed: int = 0
    exposure: Exposure | None = None
    run: int | None = None

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
        )

    def __len__(self) -> int:
        counts = torch.bincount(self.labels[self.clean])
        balanced = int(counts.max()) * int((counts > 0).sum()) if counts.numel() else 0
        return balanced + int(self.times.sum())

    def of(self, epoch: int) -> Int[Tensor, "m"]:
        """Indices of an epoch, clean samples first; the same on every process and machine."""
        clean = functional.balanced_indices(
            self.labels, self.clean, generator=self._generator(epoch)
        )
        return torch.cat([clean, torch.arange(len(self.times)).repeat_interleave(self.times)])

    def packed(self, epoch: int) -> Int[Tensor, "m"]:
        """Indices of an epoch in the order of :meth:`of`, with the epoch's exposures packed in."""
        indices = self.of(epoch)
        if self.exposure is None:
            return indices
        balanced = len(indices) - int(self.times.sum())
        generator = self._generator(epoch, stream=2)
        rate = self.exposure.rate_in(epoch, self.run)
        clean = self.exposure.over(indices[:balanced], rate, generator)
        return torch.cat([clean, indices[balanced:]])

    @plain_torch()
    def shuffled(self, epoch: int) -> Int[Tensor, "m"]:
        """Indices of an epoch as of :meth:`packed`, in random order."""
        packed = self.packed(epoch)
        generator = self._generator(epoch, stream=1)
        return packed[torch.randperm(len(packed), generator=generator)]

    def in_run_of(self, epochs: int | None) -> EpochIndices:
        """Copy for a training of ``epochs`` epochs, which decides how many exposures each has."""
        return replace(self, run=epochs)

    def _generator(self, epoch: int, stream: int = 0) -> torch.Generator:
        # SeedSequence keeps the streams apart; seed + epoch + stream would let them overlap.
        mixed = np.random.SeedSequence((self.seed, epoch, stream)).generate_state(1, np.uint32)
        return torch.Generator().manual_seed(int(mixed[0]))


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


class BalancedSampler(Sampler[int]):
    """Yields an epoch's indices of the guarded dataset, shuffled; exposed samples as ``Draw``.

    Every process yields the same order, as Accelerate and Lightning expect, which then divide the
    indices among the processes. With ``num_replicas``, the sampler divides the indices itself, as
    ``DistributedSampler`` does (the first indices are repeated at the end, so that all processes
    get equally many). The epoch advances with each pass, unless :meth:`set_epoch` sets another.

    Args:
        epochs: which samples an epoch holds.
        num_replicas: number of processes that share the indices.
        rank: number of this process.
        drop_last: leave the last indices out instead of repeating the first.
    """

    def __init__(
        self,
        epochs: EpochIndices,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas}), got {rank}")
        self.epochs = epochs
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.epoch = 0

    @classmethod
    def for_result(
        cls, result: ScanResult, config: CGDConfig | None = None, **sharding: Any
    ) -> BalancedSampler:
        """Make the sampler of a scanned data set: ``BalancedSampler.for_result(guard.result)``.

        Args:
            result: result of the scan.
            config: configuration of the training. Default: that of the scan.
            sharding: ``num_replicas``, ``rank`` and ``drop_last``.
        """
        return cls(EpochIndices.for_result(result, config or result.config), **sharding)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.epochs), self.num_replicas)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[int]:
        indices = self.epochs.shuffled(self.epoch)
        self.epoch += 1  # before the first index: a loop that breaks off moves on, too
        if self.num_replicas > 1:
            total = len(self) * self.num_replicas
            repeats = -(-total // max(len(indices), 1))
            indices = indices.repeat(repeats)[:total][self.rank :: self.num_replicas]
        yield from map(unpack, indices.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def set_run(self, epochs: int | None) -> None:
        """Say how many epochs the training has, as ``protect(..., epochs=)`` does for a loader."""
        self.epochs = self.epochs.in_run_of(epochs)


class ShardedSampler(BalancedSampler, DistributedSampler[int]):
    """A :class:`BalancedSampler` for several processes; hosts take it for a DistributedSampler."""
