"""Reading samples where one that crashes or hangs costs itself alone, and not the whole run.

Worker processes note which sample they are reading. If a worker dies, or stays at a sample for too
long and is killed for it, the samples that the workers were at are read again, each alone in a new
worker. A sample that costs this worker its life, too, is a bad sample; the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from cgd_wrap.data.paths import image_path
from cgd_wrap.data.workers import (
    HERE,
    LOOK,
    BadSamples,
    Noted,
    Notes,
    Part,
    Sample,
    Workers,
    batches_of,
    deaths_told_later,
    is_worker_death,
    stacked,
)
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)

DEATHS_ALLOWED = 3  # of workers: by samples, and in a row without a sample that explains them
CHUNK = 64  # samples that a worker reads at a time, where nothing else is said


class Consumer(Protocol):
    """Takes the batches of a job."""

    def add(self, part: Part) -> None:
        """Take a batch."""

    def finish(self) -> None:
        """Be told that all batches of the job have come."""


class _Collected:
    """Hands the samples of a job over when all have come."""

    def __init__(self, number: int, take: Callable[[int, list[Sample]], None]) -> None:
        self.number, self.take, self.all = number, take, list[Sample]()

    def add(self, part: Part) -> None:
        self.all += part.samples()

    def finish(self) -> None:
        self.take(self.number, self.all)


class SampleReader:
    """Reads samples of a view, and remembers those that killed or stalled their worker.

    Args:
        view: ``[i] -> value``; raises :class:`BadSampleError` for an unreadable sample.
        workers: the processes that read.
        known: samples that are known to be bad, by index; they are not read again. Gets the samples
            that kill or stall their worker, too: no other reader need meet them.
    """

    def __init__(self, view: Any, workers: Workers = HERE, known: BadSamples | None = None) -> None:
        self.view, self.workers = view, workers
        self.bad: BadSamples = {} if known is None else known
        self._killers = 0

    def read(
        self,
        jobs: Iterable[Sequence[int]],
        take: Callable[[int, list[Sample]], None],
        *,
        batch_size: int = CHUNK,
    ) -> None:
        """Read samples job by job, in order, and hand the samples of each job over one by one.

        Args:
            jobs: indices of the samples that are handed over together.
            take: called once for each job, with its number and its samples, which are in any order.
            batch_size: samples that a worker reads at a time.

        Raises:
            DatasetError: too many samples killed their worker, or workers die again and again.
        """
        self.read_parts(jobs, lambda number: _Collected(number, take), batch_size=batch_size)

    def read_parts(
        self,
        jobs: Iterable[Sequence[int]],
        begin: Callable[[int], Consumer],
        *,
        batch_size: int = CHUNK,
        pin: bool = False,
    ) -> None:
        """Read samples job by job, in order, and hand over each batch as it comes.

        Args:
            jobs: indices of the samples that belong together; batches don't cross their borders.
            begin: makes what takes the batches of a job, by the job's number; called again for a
                job whose worker has died.
            batch_size: samples that a worker reads at a time, and that are stacked together.
            pin: put images into page-locked memory.

        Raises:
            DatasetError: as by :meth:`read`.
        """
        todo = deque(enumerate(list(job) for job in jobs))
        unexplained = 0
        while todo:
            left, notes = len(todo), Notes(self.workers.count)
            try:
                self._deliver(todo, begin, batch_size, notes, pin)
            except RuntimeError as error:
                if not is_worker_death(error):
                    raise
                logger.warning("%s. Reading what was in work again, sample by sample.", error)
                found = self._tried_alone(notes.suspects())
                unexplained = 0 if found or len(todo) < left else unexplained + 1
                if unexplained > DEATHS_ALLOWED:
                    raise DatasetError(
                        f"processes that read samples died {unexplained} times in a row, and no "
                        f"sample alone makes them die ({error}). Is memory short? Try fewer "
                        f"num_workers, or a smaller scan_batch_size than {batch_size}."
                    ) from error

    def _deliver(
        self,
        todo: deque[tuple[int, list[int]]],
        begin: Callable[[int], Consumer],
        batch_size: int,
        notes: Notes,
        pin: bool,
    ) -> None:
        batches_in_order = [
            job[start : start + batch_size]
            for _, job in todo
            for start in range(0, len(job), batch_size)
        ]
        loader = self._loader(batches_in_order, self.workers.count, notes, pin=pin)
        with batches_of(loader) as batches:
            while todo:
                number, job = todo[0]
                consumer = begin(number)
                for _ in range(0, len(job), batch_size):
                    part = self._next(loader, batches, notes)
                    with deaths_told_later():
                        consumer.add(part)
                with deaths_told_later():
                    consumer.finish()
                    todo.popleft()

    def _loader(
        self, batches: list[list[int]], count: int, notes: Notes, *, pin: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            Noted(self.view, self.bad, notes.table),
            batch_sampler=batches,
            num_workers=count,
            pin_memory=pin,
            collate_fn=partial(stacked, alike=getattr(self.view, "alike", ())),
            timeout=min(self.workers.timeout or LOOK, LOOK) if count else 0,
            generator=torch.Generator(),  # or the loader draws from the user's global one
        )

    def _next(self, loader: DataLoader[Any], batches: Iterator[Any], notes: Notes) -> Part:
        """Fetch the next batch; a worker's death is a RuntimeError, worded as torch words it."""
        while True:
            try:
                part: Part = next(batches)
            except (OSError, EOFError) as error:
                if loader.num_workers == 0 or "DataLoader worker process" in str(error):
                    raise  # from the dataset
                message = (
                    f"DataLoader worker (pid unknown) is gone: {type(error).__name__}: {error}"
                )
                raise RuntimeError(message) from error
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                notes.kill_stalled(self.workers.timeout)  # the next round tells of their death
                continue
            for _, value in part.others:
                if isinstance(value, Exception) and not isinstance(value, BadSampleError):
                    raise value
            return part

    def _tried_alone(self, suspects: list[int]) -> list[int]:
        """Read samples each alone in a new worker; return those that kill or stall the worker."""
        guilty = []
        for index in suspects:
            notes = Notes(1)
            loader = self._loader([[index]], 1, notes)
            try:
                with batches_of(loader) as batches:
                    self._next(loader, batches, notes)
            except RuntimeError as error:
                if not is_worker_death(error):
                    raise
                self.bad[index] = self._verdict(index, notes, error)
                guilty.append(index)
        return guilty

    def _verdict(self, index: int, notes: Notes, error: RuntimeError) -> BadSampleError:
        path = image_path(self.view, index)
        if notes.stalled:
            text = f"reading it took more than {self.workers.timeout:g} seconds (sample_timeout)"
            return BadSampleError(index, "timeout", text, path)
        self._killers += 1
        if self._killers > DEATHS_ALLOWED:
            raise DatasetError(
                f"{self._killers} samples killed the process that read them, the last is sample "
                f"{index} ({error}). Is memory short? Try fewer num_workers."
            ) from error
        return BadSampleError(index, "worker_killed", str(error), path)


def read_values(
    view: Any,
    indices: Sequence[int],
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> list[Any]:
    """Read some samples of a view, each as often as it is named.

    Args:
        view: ``[i] -> value``; raises :class:`BadSampleError` for an unreadable sample.
        indices: indices of the samples.
        workers: the processes that read.
        known: as for :class:`SampleReader`.

    Returns:
        The values in order; in place of the value of a bad sample, its BadSampleError.
    """
    values: list[Any] = [None] * len(indices)

    def take(number: int, samples: list[Sample]) -> None:
        values[number] = samples[0][1]

    few = Workers(min(workers.count, len(indices)), workers.timeout)
    SampleReader(view, few, known).read([[index] for index in indices], take)
    return values
