"""Running any model over a dataset: by several processes, resumable, without collectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cgd_wrap.data.failures import ran_out_of_memory
from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.workers import HERE, BadSamples, Sample, Workers
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
        max_bad_fraction: bad samples are stored as rows of zeros with a reason, up to this share
            of all samples; None raises an error at the first.
        batch_size: None: 128 on a CPU, 512 on a GPU. Halved as long as memory runs out.
        workers: the processes that read images.
        known: samples that are known to be bad; they are not read again.
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
        max_bad_fraction: float | None = None,
        batch_size: int | None = None,
        workers: Workers = HERE,
        known: BadSamples | None = None,
        progress: bool = True,
    ) -> None:
        self.reader = SampleReader(view, workers, known)
        self.score, self.store = score, store
        self.name, self.width, self.dtype = name, width, dtype
        self.runtime, self.progress = runtime, progress
        self.max_bad = None if max_bad_fraction is None else max_bad_fraction * store.rows
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
                    self._run_units(units, bar)
                except (RuntimeError, MemoryError) as error:
                    self._take_smaller_batches(error)

    def _run_units(self, units: list[int], bar: Any) -> None:
        """Finish units, in order, and take each out of the list when it is finished."""
        todo = list(units)

        def finish(number: int, samples: list[Sample]) -> None:
            self._finish_unit(todo[number], samples)
            units.remove(todo[number])
            bar.update(len(samples))

        self.reader.read(map(self.store.rows_of, todo), finish, batch_size=self.batch_size)

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

    def _finish_unit(self, unit: int, samples: list[Sample]) -> None:
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
        if self.max_bad is None:
            if bad:
                raise bad[min(bad)]
            return
        self.bad_seen |= bad
        if len(self.bad_seen) > self.max_bad:
            last = self.bad_seen[max(self.bad_seen)]
            raise DatasetError(
                f"{len(self.bad_seen)} samples can't be used, more than max_bad_fraction allows "
                f"({self.max_bad:.0f} of {self.store.rows}). The last: {last}"
            ) from last

    def _score_within_memory(self, images: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        """Score a batch: in halves if memory runs out, again in fp32 if not all is finite."""
        try:
            return self._score(images)
        except (RuntimeError, MemoryError) as error:
            self.batch_size = len(images)
            self._take_smaller_batches(error)
        return torch.cat([self._score_within_memory(part) for part in images.tensor_split(2)])

    def _score(self, images: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        device_images = images.to(self.runtime.device, non_blocking=True)
        with torch.no_grad():
            scores = self.score(device_images, full_precision=False).float().cpu()
            if not bool(scores.isfinite().all()):
                scores = self.score(device_images, full_precision=True).float().cpu()
        if scores.shape[1] != self.width:
            raise ValueError(
                f"the model gives {scores.shape[1]} values an image, not {self.width}, one for "
                "each class"
            )
        return scores


def _stack(samples: Sequence[tuple[int, Tensor]]) -> Shaped[Tensor, "b ..."]:
    shapes = {tuple(image.shape) for _, image in samples}
    if len(shapes) > 1:
        raise DatasetError(
            f"images of samples {samples[0][0]} to {samples[-1][0]} differ in shape: "
            f"{sorted(shapes)[:5]}. The scan needs one shape; resize them in the dataset's "
            "transform, or pass eval_dataset_view= or clip_dataset= with such a transform."
        )
    return torch.stack([image for _, image in samples])


def _padded(images: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "padded ..."]:
    """Fill a batch up to a multiple of ``BATCH_MULTIPLE`` by repeating its last image.

    CPU kernels cut other batches by the number of threads, and then round differently; a process
    that a launcher started has fewer threads than a process that was started alone.
    """
    missing = -len(images) % BATCH_MULTIPLE
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
