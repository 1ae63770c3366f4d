"""Running any models over a dataset: by several processes, resumable, without collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cgd_wrap.data.failures import ran_out_of_memory
from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.workers import HERE, BadSamples, Part, Workers
from cgd_wrap.errors import BadSampleError, CGDError, DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.store import UnitStore

logger = escaped_logger(__name__)

BATCH_MULTIPLE = 16  # for multiples of this batch size, 1 to 4 threads gave the same bits


@runtime_checkable
class Scorer(Protocol):
    """A function that is computed for every image: images on the device -> a vector per image."""

    def __call__(
        self, images: Shaped[Tensor, "b ..."], *, full_precision: bool
    ) -> Float[Tensor, "b d"]:
        """Score a batch; in fp32 throughout where ``full_precision``."""


@dataclass(frozen=True, eq=False)
class Output:
    """What a scan computes for every image, and where it stores that.

    Attributes:
        store: store for the results.
        name: name of the stored tensor.
        shape: shape of an image's result: (d,) for a vector.
        dtype: type to store.
        score: the function to compute; None stores the images themselves.
    """

    store: UnitStore
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    score: Scorer | None


class Scanner:
    """Computes functions for every image of a dataset, and writes the results to stores.

    Batches never cross the border of a unit, and units don't depend on the number of processes:
    any number of processes computes the same batches, hence the same bits. The next batch is read
    while one is scored, and scored while a unit is written.

    Args:
        view: ``[i] -> image tensor``, or a tuple of one for each output; raises
            :class:`BadSampleError` for an unreadable sample.
        outputs: what to compute; all stores have the same rows.
        runtime: device, and this process' share of the units.
        max_bad_fraction: bad samples are stored as rows of zeros with a reason, up to this share
            of all samples; None raises an error at the first.
        batch_size: None: 128 on a CPU, 512 on a GPU. Halved as long as memory runs out.
        workers: the processes that read images.
        known: samples that are known to be bad; they are not read again.
        progress: draw a bar on the main process.
    """

    def __init__(
        self,
        view: Dataset[Any],
        outputs: Sequence[Output],
        *,
        runtime: Runtime,
        max_bad_fraction: float | None = None,
        batch_size: int | None = None,
        workers: Workers = HERE,
        known: BadSamples | None = None,
        progress: bool = True,
    ) -> None:
        self.reader = SampleReader(view, workers, known)
        self.outputs, self.runtime, self.progress = outputs, runtime, progress
        self.rows = outputs[0].store.rows
        self.max_bad = None if max_bad_fraction is None else max_bad_fraction * self.rows
        self.batch_size = batch_size or (512 if runtime.device.type == "cuda" else 128)
        self.bad_seen = dict[int, BadSampleError]()

    def run(self, description: str) -> None:
        """Compute and store the units in this process' share that some store lacks."""
        store = self.outputs[0].store
        owned = store.owned_by(self.runtime.process_index, self.runtime.num_processes)
        missing = [set(output.store.missing(owned)) for output in self.outputs]
        units = [unit for unit in owned if any(unit in lacking for lacking in missing)]
        if not units:
            return
        bar = tqdm(
            total=sum(len(store.rows_of(unit)) for unit in units),
            desc=description, unit="img", disable=not (self.progress and self.runtime.is_main),
        )  # fmt: skip
        with bar:
            while units:
                try:
                    self._run_units(units, missing, bar)
                except (RuntimeError, MemoryError) as error:
                    self._take_smaller_batches(error)

    def _run_units(self, units: list[int], missing: list[set[int]], bar: Any) -> None:
        """Finish units, in order, and take each out of the list when it is finished."""
        todo, rows_of = list(units), self.outputs[0].store.rows_of
        with _Behind() as behind:

            def begin(number: int) -> _UnitResults:
                unit = todo[number]
                lacking = [
                    (place, output)
                    for place, output in enumerate(self.outputs)
                    if unit in missing[place]
                ]
                return _UnitResults(self, unit, lacking, done)

            def done(unit: int, write: Callable[[], None]) -> None:
                behind.start(write)
                units.remove(unit)
                bar.update(len(rows_of(unit)))

            self.reader.read_parts(
                map(rows_of, todo), begin,
                batch_size=self.batch_size, pin=self.runtime.device.type == "cuda",
            )  # fmt: skip

    def _take_smaller_batches(self, error: Exception) -> None:
        """Halve the batches if an error says that memory ran out; raise any other error again."""
        if not ran_out_of_memory(error):
            raise error
        if self.batch_size == 1:
            raise CGDError(
                f"memory ran out on {self.runtime.device} even with a batch size of 1: {error}"
            ) from error
        self.batch_size = max(1, self.batch_size // 2)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("memory ran out; going on with batches of %d.", self.batch_size)

    def apply_policy(self, bad: dict[int, BadSampleError]) -> None:
        """Raise an error for bad samples, or count them, as the user wants it."""
        if self.max_bad is None:
            if bad:
                raise bad[min(bad)]
            return
        self.bad_seen |= bad
        if len(self.bad_seen) > self.max_bad:
            last = self.bad_seen[max(self.bad_seen)]
            raise DatasetError(
                f"{len(self.bad_seen)} samples can't be used, more than max_bad_fraction allows "
                f"({self.max_bad:.0f} of {self.rows}). The last: {last}"
            ) from last

    def scores(
        self, score: Scorer, images: Shaped[Tensor, "b ..."], *, full_precision: bool = False
    ) -> Float[Tensor, "b d"]:
        """Score images, on the device; in smaller batches if memory runs out."""
        parts, done = [], 0
        while done < len(images):  # not a split: the batch size may shrink on the way
            batch = images[done : done + self.batch_size]
            try:
                found = _score(score, batch, self.runtime.device, full_precision=full_precision)
            except (RuntimeError, MemoryError) as error:
                self.batch_size = len(batch)
                self._take_smaller_batches(error)
                continue
            parts.append(found)
            done += len(batch)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _UnitResults:
    """The results of a unit, filled batch by batch.

    Args:
        scanner: scores the images.
        unit: number of the unit.
        outputs: what the unit lacks, with its place among the images that a sample gives.
        done: takes the unit's number, and what writes the unit.
    """

    def __init__(
        self,
        scanner: Scanner,
        unit: int,
        outputs: list[tuple[int, Output]],
        done: Callable[[int, Callable[[], None]], None],
    ) -> None:
        self.scanner, self.unit, self.outputs, self.done = scanner, unit, outputs, done
        self.rows = outputs[0][1].store.rows_of(unit)
        self.whole = [
            torch.zeros(len(self.rows), *output.shape, dtype=output.dtype) for _, output in outputs
        ]
        self.unreadable = dict[int, BadSampleError]()
        self.unscored = [dict[int, BadSampleError]() for _ in outputs]
        self.waiting: list[Callable[[], None]] = []

    def add(self, part: Part) -> None:
        """Score a batch; the results are fetched from the device when the next is on its way."""
        for index, value in part.others:
            if not isinstance(value, BadSampleError):
                raise _differing_shapes(part)
            self.unreadable[index] = value
        started: list[Callable[[], None]] = []
        where = torch.tensor(part.indices, dtype=torch.int64) - self.rows.start
        for number, (place, output) in enumerate(self.outputs if part.indices else ()):
            images = part.images[place]
            if output.score is None:
                self.whole[number][where] = images.to(output.dtype)
                continue
            scores = self.scanner.scores(output.score, images)
            _check_width(scores, output)
            started.append(self._fetch(number, output.score, images, scores, where))
        self._fetch_all()
        self.waiting = started
        if self.scanner.runtime.device.type == "cpu":  # nothing is on its way
            self._fetch_all()

    def _fetch(
        self, number: int, score: Scorer, images: Tensor, scores: Tensor, where: Tensor
    ) -> Callable[[], None]:
        def fetch() -> None:
            values = scores.float().cpu()
            if not bool(values.isfinite().all()):
                values = self.scanner.scores(score, images, full_precision=True).float().cpu()
            finite = values.isfinite().all(dim=1)
            for row in where[~finite].tolist():
                index, text = row + self.rows.start, "the model's output is not finite"
                self.unscored[number][index] = BadSampleError(index, "nonfinite", text)
            values[~finite] = 0.0
            self.whole[number][where] = values.to(self.whole[number].dtype)

        return fetch

    def _fetch_all(self) -> None:
        for fetch in self.waiting:
            fetch()
        self.waiting = []

    def finish(self) -> None:
        """Hand the unit over to be written."""
        self._fetch_all()
        self.scanner.apply_policy(
            self.unreadable | {i: e for b in self.unscored for i, e in b.items()}
        )
        self.done(self.unit, self._write)

    def _write(self) -> None:
        for (_, output), whole, unscored in zip(
            self.outputs, self.whole, self.unscored, strict=True
        ):
            bad = self.unreadable | unscored
            reasons = {index: [e.reason, e.message, e.path] for index, e in bad.items()}
            output.store.write(self.unit, {output.name: whole}, reasons)


class _Behind:
    """Does one thing at a time beside the main thread, and raises its error there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> _Behind:
        return self

    def start(self, job: Callable[[], None]) -> None:
        """Start a job when the last one has ended."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(job)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._thread.shutdown()
        if self._last is not None and kind is None:
            self._last.result()


def _score(
    score: Scorer, images: Shaped[Tensor, "b ..."], device: torch.device, *, full_precision: bool
) -> Float[Tensor, "b d"]:
    padded = _padded(images).to(device, non_blocking=True)
    with torch.no_grad():
        return score(padded, full_precision=full_precision)[: len(images)]


def _check_width(scores: Tensor, output: Output) -> None:
    if scores.shape[1:] != output.shape:
        raise ValueError(
            f"the model gives {scores.shape[1]} values an image, not {output.shape[0]}, one for "
            "each class"
        )


def _differing_shapes(part: Part) -> DatasetError:
    images = [(index, value) for index, value in part.others if isinstance(value, Tensor)]
    shapes = {tuple(image.shape) for _, image in images}
    types = {str(image.dtype) for _, image in images}
    differ = f"shape: {sorted(shapes)[:5]}" if len(shapes) > 1 else f"type: {sorted(types)}"
    return DatasetError(
        f"images of samples {images[0][0]} to {images[-1][0]} differ in {differ}. The scan needs "
        "one shape and type; change them in the dataset's transform, or pass eval_dataset_view= "
        "or clip_dataset= with such a transform."
    )


def _padded(images: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "padded ..."]:
    """Fill a batch up to a multiple of ``BATCH_MULTIPLE`` by repeating its last image.

    CPU kernels cut other batches by the number of threads, and then round differently; a process
    that a launcher started has fewer threads than a process that was started alone.
    """
    missing = -len(images) % BATCH_MULTIPLE
    if missing == 0:
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
