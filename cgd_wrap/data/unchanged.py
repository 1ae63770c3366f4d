"""Noticing that a dataset isn't any more what it was when it was scanned."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.data.label_values import as_class_indices, same_label
from cgd_wrap.data.labels import confirmed_column
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.pixel_hashes import pixel_hashes
from cgd_wrap.data.probes import spread
from cgd_wrap.data.sources import readable
from cgd_wrap.data.views import RawImages
from cgd_wrap.errors import DatasetError
from cgd_wrap.randomness import undisturbed

PROBES = 16
ADVICE = "Its scores and splits belong to the samples of then: make a new guard, and scan again."


def check_length(dataset: Any, labels: Int[Tensor, "n"]) -> None:
    """Refuse a dataset that has grown or shrunk since its labels were read.

    Raises:
        DatasetError: the number of samples differs.
    """
    if len(dataset) != len(labels):
        raise DatasetError(
            f"the dataset has {len(dataset)} samples now and had {len(labels)} when the guard was "
            f"made. {ADVICE}"
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """What a scan saw of a dataset: all labels, and the pixels of a few samples.

    Attributes:
        labels: given labels, int64 [N].
        pixels: hash of the pixels of each probed sample, by index.
    """

    labels: Int[Tensor, "n"]
    pixels: dict[int, bytes]

    @classmethod
    def of(cls, labels: Int[Tensor, "n"], raw: RawImages, bad: Collection[int] = ()) -> Seen:
        """Read the pixels of a few samples.

        Args:
            labels: given labels.
            raw: the raw images.
            bad: samples that can't be read; they aren't looked at.
        """
        probes = [index for index in spread(len(raw), PROBES) if index not in bad]
        with undisturbed():
            return cls(labels, dict(zip(probes, pixel_hashes(raw, probes), strict=True)))

    def check(
        self,
        dataset: Any,
        layout: SampleLayout | None = None,
        raw: Callable[[], RawImages] | None = None,
    ) -> None:
        """Refuse a dataset that has grown or shrunk, or has other labels or pixels.

        Labels are compared as a column where the dataset has such a column; otherwise a few are.

        Args:
            dataset: the dataset as it is now.
            layout: where a sample holds its label. None: only the length is compared.
            raw: makes the raw images anew.

        Raises:
            DatasetError: length, labels or pixels differ; samples that differ are named.
        """
        check_length(dataset, self.labels)
        if layout is not None and raw is not None:
            with undisturbed():
                self._check_labels(dataset, layout)
                self._check_pixels(raw)

    def _check_labels(self, dataset: Any, layout: SampleLayout) -> None:
        column = confirmed_column(dataset, layout)
        if column is not None:
            now = as_class_indices(column, None)
            differing = (now != self.labels).nonzero().squeeze(1).tolist()
        else:
            honest, differing = readable(dataset), []
            for index in self.pixels:
                with suppress(Exception):  # unreadable, then as now
                    label = layout.label_of(honest[index])
                    if not same_label(label, self.labels[index]):
                        differing.append(index)
        if differing:
            compared = len(self.labels if column is not None else self.pixels)
            raise DatasetError(
                f"the labels of {len(differing)} of {compared} samples that were compared aren't "
                f"those of the scan (samples {differing[:10]}): the dataset was reordered or "
                f"changed. {ADVICE}"
            )

    def _check_pixels(self, raw: Callable[[], RawImages]) -> None:
        try:
            view, probes = raw(), list(self.pixels)
            now = dict(zip(probes, pixel_hashes(view, probes), strict=True))
            again = (
                now
                if now == self.pixels
                else dict(zip(probes, pixel_hashes(view, probes), strict=True))
            )
        except (DatasetError, TypeError):
            return  # a new transform, which can't be left out, hides the raw images
        differing = [index for index, pixels in self.pixels.items() if now[index] != pixels]
        if differing and now == again:
            raise DatasetError(
                f"the images of {len(differing)} of {len(now)} samples that were compared aren't "
                f"those of the scan (samples {differing[:10]}): the dataset was reordered or "
                f"changed. {ADVICE}"
            )
