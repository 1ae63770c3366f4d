"""Running any models over a dataset: by several processes, resumable, without collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.errors import DatasetError
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.scoring import Scoring
from cgd_wrap.scan.unit_results import Output, UnitResults


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
        self.scoring = Scoring(runtime.device, batch_size)
        self.bad_seen: BadSamples = {}

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
                    self.scoring.take_smaller_batches(error)

    def _run_units(self, units: list[int], missing: list[set[int]], bar: Any) -> None:
        """Finish units, in order, and take each out of the list when it is finished."""
        todo, rows_of = list(units), self.outputs[0].store.rows_of
        with _Behind() as behind:

            def begin(number: int) -> UnitResults:
                lacking = [
                    (place, output)
                    for place, output in enumerate(self.outputs)
                    if todo[number] in missing[place]
                ]
                return UnitResults(todo[number], lacking, self.scoring, done)

            def done(results: UnitResults) -> None:
                def write() -> None:
                    results.write()
                    units.remove(results.unit)  # not before: if memory runs out, the rest is redone

                self._apply_policy(results.bad())
                behind.start(write)
                bar.update(len(results.rows))

            self.reader.read_parts(
                map(rows_of, todo), begin,
                batch_size=self.scoring.batch_size, pin=self.runtime.device.type == "cuda",
            )  # fmt: skip

    def _apply_policy(self, bad: BadSamples) -> None:
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
