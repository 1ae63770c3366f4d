"""Running any model over a dataset: by several processes, resumable, without collectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.store import UnitStore

logger = escaped_logger(__name__)

BATCH_MULTIPLE = 16  # for multiples of this batch size, 1 to 4 threads gave the same bits
WORKER_DEATHS_ALLOWED = 3  # samples that may kill their worker before the scan stops


@runtime_checkable
class Scorer(Protocol):
    """A function that is computed for every image: images on the device -> a vector per image."""

    def __call__(
        self, images: Float[Tensor, "b ..."], *, full_precision: bool
    ) -> Float[Tensor, "b d"]:
        """Score a batch; in fp32 throughout where ``full_precision``."""


class Scanner:
    """Computes a function for every image of a dataset, and writes the results to a store.

    Batches never cross the border of a unit, and units don't depend on the number of processes:
    any number of processes computes the same batches, hence the same bits.

    Args:
        view: ``[i] -> image tensor``; raises :class:`BadSampleError` for an unreadable sample.
        score: the function to compute.
        store: store for the results.
        name: name of the stored tensor.
        width: d, number of values per image.
        dtype: type to store.
        runtime: device, and this process' share of the units.
        record_bad: store bad samples as rows of zeros with a reason, instead of raising.
        max_bad_fraction: with ``record_bad``, share of bad samples above which the scan stops.
        batch_size: None: 128 on a CPU, 512 on a GPU, halved as long as its memory runs out.
        num_workers: number of processes that read images.
        progress: draw a bar on the main process.
    """

    def __init__(
        self,
        view: Dataset[Tensor],
        score: Scorer,
        store: UnitStore,
        *,
        name: str,
        width: int,
        dtype: torch.dtype,
        runtime: Runtime,
        record_bad: bool = False,
        max_bad_fraction: float = 1e-3,
        batch_size: int | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        self.reader = _Reader(view)
        self.score, self.store = score, store
        self.name, self.width, self.dtype = name, width, dtype
        self.runtime, self.num_workers, self.progress = runtime, num_workers, progress
        self.record_bad, self.max_bad = record_bad, max_bad_fraction * store.rows
        self.batch_size = batch_size or (512 if runtime.device.type == "cuda" else 128)
        self.bad_seen = dict[int, BadSampleError]()

    def run(self, description: str) -> None:
        """Compute and store the units in this process' share that the store lacks."""
        units = self.store.missing(
            self.store.owned_by(self.runtime.process_index, self.runtime.num_processes)
        )
        if not units:
            return
        bar = tqdm(
            total=sum(len(self.store.rows_of(unit)) for unit in units),
            desc=description, unit="img", disable=not (self.progress and self.runtime.is_main),
        )  # fmt: skip
        with bar:
            while units:
                try:
                    for unit, samples in _unit_by_unit(self._loader(units), self.store, units):
                        self._finish_unit(unit, samples)
                        units.remove(unit)
                        bar.update(len(samples))
                except RuntimeError as error:  # raised by a signal, at any place
                    if not _is_worker_death(error):
                        raise
                    logger.warning("%s. Reading a unit again, sample by sample.", error)
                    for unit in units[:1]:
                        rows = list(self.store.rows_of(unit))
                        self._finish_unit(unit, self._read_isolated(rows))
                        units.remove(unit)
                        bar.update(len(rows))

    def _loader(self, units: Sequence[int]) -> DataLoader[Any]:
        rows = [self.store.rows_of(unit) for unit in units]
        batches = [
            list(unit_rows[start : start + self.batch_size])
            for unit_rows in rows
            for start in range(0, len(unit_rows), self.batch_size)
        ]
        return self._loader_of(batches, self.num_workers)

    def _loader_of(self, batches: list[list[int]], num_workers: int) -> DataLoader[Any]:
        return DataLoader(
            self.reader,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # or the loader draws from the user's global one
        )

    def _read_isolated(self, rows: list[int]) -> list[_Sample]:
        """Read rows in a new worker, halving them until the row that kills workers is alone."""
        try:
            loader = self._loader_of([rows], num_workers=1)
            with _batches_of(loader) as batches:
                return _samples_of(loader, batches)
        except RuntimeError as error:
            if not _is_worker_death(error):
                raise
            if len(rows) > 1:
                middle = len(rows) // 2
                return self._read_isolated(rows[:middle]) + self._read_isolated(rows[middle:])
            self.reader.deaths += 1
            if self.reader.deaths > WORKER_DEATHS_ALLOWED:
                raise DatasetError(
                    f"{self.reader.deaths} samples killed the process that read them, the last "
                    f"is sample {rows[0]} ({error}). Is memory short? Try fewer num_workers."
                ) from error
            return [(rows[0], BadSampleError(rows[0], "worker_killed", str(error)))]

    def _finish_unit(self, unit: int, samples: list[_Sample]) -> None:
        rows, bad = self.store.rows_of(unit), dict[int, BadSampleError]()
        results: dict[int, Tensor] = {}
        good: list[tuple[int, Tensor]] = []
        for index, image in samples:
            if isinstance(image, BadSampleError):
                bad[index] = image
            else:
                good.append((index, image))
        while good:
            # Not a range with a step: the batch size may shrink on the way.
            batch, good = good[: self.batch_size], good[self.batch_size :]
            scores = self._score_within_memory(_padded(_stack(batch)))[: len(batch)]
            for (index, _), row in zip(batch, scores, strict=True):
                if bool(row.isfinite().all()):
                    results[index] = row
                else:
                    bad[index] = BadSampleError(
                        index, "nonfinite", "the model's output is not finite"
                    )
        self._apply_policy(bad)
        zeros = torch.zeros(self.width)
        whole = torch.stack([zeros if index in bad else results[index] for index in rows])
        reasons = {i: [e.reason, e.message, e.path] for i, e in bad.items()}
        self.store.write(unit, {self.name: whole.to(self.dtype)}, reasons)

    def _apply_policy(self, bad: dict[int, BadSampleError]) -> None:
        if bad and not self.record_bad:
            raise bad[min(bad)]
        self.bad_seen |= bad
        if len(self.bad_seen) > self.max_bad:
            last = self.bad_seen[max(self.bad_seen)]
            raise DatasetError(
                f"{len(self.bad_seen)} samples can't be used, more than max_bad_fraction allows "
                f"({self.max_bad:.0f} of {self.store.rows}). The last: {last}"
            ) from last

    def _score_within_memory(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        """Score a batch: in halves if GPU memory runs out, again in fp32 if not all is finite."""
        try:
            device_images = images.to(self.runtime.device, non_blocking=True)
            with torch.no_grad():
                scores = self.score(device_images, full_precision=False).float().cpu()
                if not bool(scores.isfinite().all()):
                    scores = self.score(device_images, full_precision=True).float().cpu()
            if scores.shape[1] != self.width:
                raise ValueError(
                    f"the model gives {scores.shape[1]} values an image, not {self.width}, one "
                    "for each class"
                )
            return scores
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        self.batch_size = max(1, len(images) // 2)
        torch.cuda.empty_cache()
        logger.warning("GPU memory ran out; going on with batches of %d.", self.batch_size)
        return torch.cat([self._score_within_memory(part) for part in images.tensor_split(2)])


_Sample = tuple[int, "Tensor | BadSampleError"]


class _Reader(Dataset[_Sample]):
    """Returns errors as values, so that a worker survives them and the sample's index is known."""

    def __init__(self, view: Dataset[Tensor]) -> None:
        self.view = view
        self.deaths = 0

    def __len__(self) -> int:
        return len(cast(Sized, self.view))

    def __getitem__(self, index: int) -> _Sample:
        try:
            return index, self.view[index]
        except BadSampleError as error:
            return index, error


def _collate(samples: list[_Sample]) -> tuple[list[int], Any, list[_Sample]]:
    """Stack images into one tensor, since each tensor of a worker takes an open file to send."""
    good = [(index, image) for index, image in samples if isinstance(image, Tensor)]
    bad = [sample for sample in samples if not isinstance(sample[1], Tensor)]
    images: Any = [image for _, image in good]
    if len({(image.shape, image.dtype) for image in images}) == 1:
        images = torch.stack(images)
    return [index for index, _ in good], images, bad


def _samples_of(loader: DataLoader[Any], batches: Iterator[Any]) -> list[_Sample]:
    """Fetch the next batch; a worker's death is a RuntimeError, worded as torch words it."""
    try:
        indices, images, bad = next(batches)
    except (OSError, EOFError) as error:
        if loader.num_workers == 0 or "DataLoader worker process" in str(error):
            raise  # from the dataset
        message = f"DataLoader worker (pid unknown) is gone: {type(error).__name__}: {error}"
        raise RuntimeError(message) from error
    return [*zip(indices, images, strict=True), *bad]


@contextmanager
def _batches_of(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
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


def _unit_by_unit(
    loader: DataLoader[Any], store: UnitStore, units: Sequence[int]
) -> Iterator[tuple[int, list[_Sample]]]:
    with _batches_of(loader) as batches:
        for unit in list(units):
            samples: list[_Sample] = []
            while len(samples) < len(store.rows_of(unit)):
                samples += _samples_of(loader, batches)
            yield unit, samples


def _stack(samples: Sequence[tuple[int, Tensor]]) -> Float[Tensor, "b ..."]:
    shapes = {tuple(image.shape) for _, image in samples}
    if len(shapes) > 1:
        raise DatasetError(
            f"images of samples {samples[0][0]} to {samples[-1][0]} differ in shape: "
            f"{sorted(shapes)[:5]}. The scan needs one shape; resize them in the dataset's "
            "transform, or pass eval_dataset_view= or clip_dataset= with such a transform."
        )
    return torch.stack([image for _, image in samples])


def _padded(images: Float[Tensor, "b ..."]) -> Float[Tensor, "padded ..."]:
    """Fill a batch up to a multiple of ``BATCH_MULTIPLE`` by repeating its last image.

    CPU kernels cut other batches by the number of threads, and then round differently; a process
    that a launcher started has fewer threads than a process that was started alone.
    """
    missing = -len(images) % BATCH_MULTIPLE
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])


def _is_worker_death(error: RuntimeError) -> bool:
    return "DataLoader worker (pid" in str(error)  # not "Caught ... in DataLoader worker"
