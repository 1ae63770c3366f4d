"""The results of a unit of a scan, filled batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgd_wrap.data.workers import BadSamples, Part
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.scan.scoring import Scorer, Scoring
from cgd_wrap.scan.store import UnitStore


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


class UnitResults:
    """The results of a unit, filled batch by batch.

    Args:
        unit: number of the unit.
        outputs: what the unit lacks, with its place among the images that a sample gives.
        scoring: scores the images.
        done: is told that the unit is whole: takes this object.
    """

    def __init__(
        self,
        unit: int,
        outputs: Sequence[tuple[int, Output]],
        scoring: Scoring,
        done: Callable[[UnitResults], None],
    ) -> None:
        self.unit, self.outputs, self.scoring, self.done = unit, outputs, scoring, done
        self.rows = outputs[0][1].store.rows_of(unit)
        self.whole = [
            torch.zeros(len(self.rows), *output.shape, dtype=output.dtype) for _, output in outputs
        ]
        self.unreadable: BadSamples = {}
        self.unscored: list[BadSamples] = [{} for _ in outputs]
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
            scores = self.scoring.scores(output.score, images)
            _check_width(scores, output)
            started.append(self._fetch(number, output.score, images, scores, where))
        self._fetch_all()
        self.waiting = started
        if self.scoring.device.type == "cpu":  # nothing is on its way
            self._fetch_all()

    def _fetch(
        self, number: int, score: Scorer, images: Tensor, scores: Tensor, where: Tensor
    ) -> Callable[[], None]:
        def fetch() -> None:
            values = scores.float().cpu()
            if not bool(values.isfinite().all()):
                values = self.scoring.scores(score, images, full_precision=True).float().cpu()
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
        """Hand the unit over."""
        self._fetch_all()
        self.done(self)

    def bad(self) -> BadSamples:
        """Samples of the unit that can't be used for some output."""
        return {i: error for one in (*self.unscored, self.unreadable) for i, error in one.items()}

    def write(self) -> None:
        """Store the unit."""
        for (_, output), whole, unscored in zip(
            self.outputs, self.whole, self.unscored, strict=True
        ):
            bad = self.unreadable | unscored
            reasons = {index: [e.reason, e.message, e.path] for index, e in bad.items()}
            output.store.write(self.unit, {output.name: whole}, reasons)


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
