"""Worker processes that note which sample they are reading, and how their death is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from cgd_wrap.errors import BadSampleError, CGDError

LOOK = 5.0  # seconds without a sample after which the workers are looked at
NOBODY = -1.0  # in a worker's notes: it is at no sample

Alike = Callable[[Tensor], Tensor]
Sample = tuple[int, Any]  # index, and the value or the BadSampleError of reading it
BadSamples = dict[int, BadSampleError]  # by index


@dataclass(frozen=True)
class Workers:
    """The processes that read samples.

    Attributes:
        count: number of processes. 0 reads in this process, as a DataLoader does: a sample that
            crashes then takes this process along, and one that hangs is waited for.
        timeout: seconds after which a worker that is still at the same sample is killed; None
            waits forever.
    """

    count: int = 0
    timeout: float | None = None


HERE = Workers()


class Notes:
    """A row for each worker, in shared memory: the sample it is at, since when, and its process."""

    def __init__(self, count: int) -> None:
        self.table = torch.full((count, 3), NOBODY, dtype=torch.float64, device="cpu")
        if count:
            self.table.share_memory_()
        self.stalled = set[int]()

    def suspects(self) -> list[int]:
        """Samples that workers are at, or were at when they ended."""
        return sorted({int(index) for index, _, _ in self.table.tolist() if index != NOBODY})

    def kill_stalled(self, timeout: float | None) -> None:
        """Kill the workers that have been at the same sample for ``timeout`` seconds."""
        for index, since, process in self.table.tolist():
            late = timeout is not None and time.monotonic() - since >= timeout
            if index != NOBODY and late:
                self.stalled.add(int(index))
                with suppress(ProcessLookupError):
                    os.kill(int(process), getattr(signal, "SIGKILL", signal.SIGTERM))


@dataclass(frozen=True)
class Part:
    """Samples that were read together: images stacked, everything else one by one.

    Attributes:
        indices: indices of the samples whose images are stacked.
        images: the stacked images [b, ...]; of a view that gives several images a sample, one
            stack for each. Empty where the images differ in shape or type.
        others: index and value of all other samples; the value may be a BadSampleError.
    """

    indices: list[int]
    images: tuple[Tensor, ...]
    others: list[Sample]

    def samples(self) -> list[Sample]:
        """Index and value of each sample, of a view that gives one image a sample or none."""
        return [*zip(self.indices, *self.images, strict=True), *self.others]

    def pin_memory(self) -> Part:
        """The same in page-locked memory, from where a GPU takes it while it computes."""
        return Part(self.indices, tuple(images.pin_memory() for images in self.images), self.others)


class Noted(Dataset[Sample]):
    """Returns our errors as values, since a worker survives them so, and notes where it is."""

    def __init__(self, view: Any, bad: BadSamples, notes: Tensor) -> None:
        self.view, self.bad, self.notes = view, bad, notes

    def __len__(self) -> int:
        return len(self.view)

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        worker, read = get_worker_info(), self._read
        if worker is None:
            return [(index, read(index)) for index in indices]
        row: Any = memoryview(self.notes.numpy()[worker.id])  # faster than the array to write to
        now, row[2] = time.monotonic, float(os.getpid())
        samples = []
        for index in indices:
            row[1], row[0] = now(), float(index)
            samples.append((index, read(index)))
        row[0] = NOBODY
        return samples

    def _read(self, index: int) -> Any:
        if index in self.bad:
            return self.bad[index]
        try:
            return self.view[index]
        except CGDError as error:
            return error


def stacked(samples: list[Sample], alike: Sequence[Alike | None] = ()) -> Part:
    """Stack images into one tensor, since each tensor of a worker takes an open file to send.

    Args:
        samples: what was read.
        alike: for each image that a sample gives, a function that brings it to the shape of the
            others, where the images of a batch differ; None where there is no such function.
    """
    indices, images, others = list[int](), list[tuple[Tensor, ...]](), list[Sample]()
    for sample in samples:
        index, value = sample
        if isinstance(value, Tensor):
            value = (value,)
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            indices.append(index)
            images.append(value)
        else:
            others.append(sample)
    columns = list(zip(*images, strict=True))
    stacks = [
        _stack(column, change)
        for column, change in zip(columns, alike or [None] * len(columns), strict=False)
    ]
    whole = tuple(stack for stack in stacks if stack is not None)
    return Part(indices, whole, others) if len(whole) == len(stacks) else Part([], (), samples)


def _stack(images: Sequence[Tensor], alike: Alike | None = None) -> Tensor | None:
    """Stack images, in a worker straight into shared memory; None if they differ in kind."""
    if alike is not None and len({image.shape for image in images}) > 1:
        images = [alike(image) for image in images]
    if len({image.dtype for image in images}) == 1:
        try:
            stack: Tensor = default_collate([*images])
        except RuntimeError:
            if len({image.shape for image in images}) == 1:
                raise
        else:
            return stack
    return None


@contextmanager
def batches_of(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Iterate over a loader's batches; on leaving, the loader's workers have ended.

    When a worker dies, torch raises an error in whatever code the main process is running. If a
    worker were left at work on a sample that kills it, this could be the user's code.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        end_workers = getattr(batches, "_shutdown_workers", None)
        if end_workers is not None:
            with suppress(RuntimeError):
                end_workers()


@contextmanager
def deaths_told_later() -> Iterator[None]:
    """Let torch raise the error of a worker's death after this block, not within it.

    Else torch would raise in whatever code the main thread is running when the signal comes in:
    also in the user's model, which may well catch the error.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    if handler is None or not callable(handler):
        yield
        return
    missed: list[tuple[int, Any]] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: missed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if missed:
        handler(*missed[-1])


def is_worker_death(error: RuntimeError) -> bool:
    """Whether an error is torch's for the death of a worker."""
    return "DataLoader worker (pid" in str(error)  # not "Caught ... in DataLoader worker"
