"""Reading the labels of any dataset, without decoding images where possible."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

from cgd_wrap.data.label_values import as_class_indices, same_label
from cgd_wrap.data.layout import LABEL_NAMES, SampleLayout
from cgd_wrap.data.reading import CHUNK, SampleReader
from cgd_wrap.data.samples import Samples, probes_of
from cgd_wrap.data.sources import (
    ReaderImages,
    checked,
    getitem_home,
    held,
    is_concat,
    is_subset,
    is_table,
    is_timm,
    untransformed,
)
from cgd_wrap.data.transforms import passthrough
from cgd_wrap.data.workers import HERE, BadSamples, Sample, Workers
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.randomness import kept_rng

LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "_targets")
SAMPLE_ATTRIBUTES = ("samples", "_samples", "imgs")


def read_labels(
    dataset: Any,
    layout: SampleLayout,
    num_classes: int | None,
    *,
    workers: Workers = HERE,
    progress: bool = False,
    fatal: BadSamples | None = None,
    bad: BadSamples | None = None,
) -> Int64[Tensor, " n"]:
    """Read the label of every sample, as the training loop sees it.

    A column of the dataset is used if a few samples confirm it; otherwise all items are read,
    without their image transforms if the labels stay the same.

    Args:
        dataset: any map-style dataset.
        layout: where an item holds its label.
        num_classes: labels must be in [0, num_classes); None checks for negative ones only.
        workers: the processes that read items, if there is no column to use.
        progress: show a bar while items are read.
        fatal: samples that must not be read, from :func:`~cgd_wrap.data.samples.fatal_probes`.
        bad: gets the samples whose label cannot be read; their label is then 0. None raises an
            error instead.

    Raises:
        DatasetError: labels are no class numbers, or there are fewer than 10 samples or 2 classes.
        BadSampleError: an item cannot be read and ``bad`` is None.
    """
    fatal = {} if fatal is None else fatal
    with kept_rng():
        values = confirmed_column(dataset, layout, fatal)
        if values is None:
            source = _label_source(dataset, layout, fatal)
            items = Samples(dataset, source, of=_LabelOf(layout))
            values = _read_items(items, workers, fatal, progress, bad)
    labels = as_class_indices(values, num_classes)
    if len(labels) < 10:
        raise DatasetError(f"expected at least 10 samples to rank, got {len(labels)}")
    if bool((labels == labels[0]).all()):
        raise DatasetError(
            f"expected at least 2 classes, but all {len(labels)} samples have label "
            f"{int(labels[0])}: ranks within one class separate nothing"
        )
    return labels


def confirmed_column(dataset: Any, layout: SampleLayout, fatal: Collection[int] = ()) -> Any:
    """Find the labels as one column, if the column agrees with a few items; else None."""
    column = label_column(dataset, layout)
    if column is None or len(column) != len(dataset):
        return None
    labels = _some_labels(checked(dataset), layout, fatal)
    if not all(same_label(label, column[index]) for index, label in labels.items()):
        return None
    return column


def label_column(dataset: Any, layout: SampleLayout) -> Any:
    """Find the labels that a known kind of dataset holds in one place; None for other datasets."""
    if is_subset(dataset):
        column = label_column(dataset.dataset, layout)
        indices = np.asarray(dataset.indices, dtype=np.int64)
        if isinstance(column, (np.ndarray, Tensor)):
            return np.asarray(column)[indices]
        return None if column is None else [column[i] for i in indices.tolist()]
    if is_concat(dataset):
        columns = [label_column(part, layout) for part in dataset.datasets]
        if any(column is None for column in columns):
            return None
        return [label for column in columns for label in column]
    if is_table(dataset):
        name = table_label_column(dataset, layout)
        if name is None:
            return None
        return dataset.with_format(None).select_columns([name])[:][name]
    if isinstance(dataset, ReaderImages):
        return label_column(dataset.dataset, layout)
    if is_timm(dataset):
        return _attribute_labels(dataset.reader, dataset.target_transform)
    if type(dataset) is TensorDataset and isinstance(layout.label, int):
        return dataset.tensors[layout.label]
    # Items of other classes may have other labels than the attributes say (poisoned copies do).
    if getitem_home(dataset).split(".")[0] in ("torchvision", "cgd_wrap"):
        return _attribute_labels(dataset, getattr(dataset, "target_transform", None))
    return None


def table_label_column(table: Any, layout: SampleLayout) -> str | None:
    """Name of the column of a ``datasets.Dataset`` that becomes the label of the user's items."""
    columns = list(table.column_names)
    if isinstance(layout.label, str) and layout.label in columns:
        return layout.label
    typed = [name for name in columns if type(table.features[name]).__name__ == "ClassLabel"]
    if len(typed) == 1:
        return str(typed[0])
    return next((name for name in LABEL_NAMES if name in (typed or columns)), None)


def _attribute_labels(holder: Any, target_transform: Any) -> Any:
    labels: Any = None
    for name in LABEL_ATTRIBUTES:
        if labels is None and isinstance(held(holder, name), (list, tuple, np.ndarray, Tensor)):
            labels = held(holder, name)
    for name in SAMPLE_ATTRIBUTES:
        entries = held(holder, name)
        if labels is None and isinstance(entries, (list, tuple)) and entries:
            pairs = isinstance(entries[0], (list, tuple)) and len(entries[0]) == 2
            labels = [entry[1] for entry in entries] if pairs else None
    if labels is None or target_transform is None:
        return labels
    plain = labels.tolist() if isinstance(labels, (np.ndarray, Tensor)) else labels
    return [target_transform(label) for label in plain]


class _LabelOf:
    """Takes the label from a sample."""

    def __init__(self, layout: SampleLayout) -> None:
        self.layout = layout

    def __call__(self, sample: Any) -> Any:
        label = self.layout.label_of(sample)
        # A tensor would cross the process border as an open file, one per sample.
        return label.detach().cpu().numpy() if isinstance(label, Tensor) else label


def _label_source(dataset: Any, layout: SampleLayout, fatal: Collection[int]) -> Any:
    """Find the form of the dataset that is cheapest to read and gives the same labels."""
    honest = checked(dataset)
    expected = _some_labels(honest, layout, fatal)
    for fill in (None, passthrough):
        try:
            candidate = untransformed(dataset, layout.image, fill)
            pairs = [(layout.label_of(candidate[i]), label) for i, label in expected.items()]
        except Exception:  # the dataset's code can't do without its transform
            continue
        if pairs and all(same_label(one, other) for one, other in pairs):
            return candidate
    return honest


def _some_labels(honest: Any, layout: SampleLayout, fatal: Collection[int]) -> dict[int, Any]:
    """Read the labels of a few samples, by index; unreadable samples are left out."""
    found: dict[int, Any] = {}
    for index in probes_of(honest):
        if index not in fatal:
            with suppress(Exception):
                found[index] = layout.label_of(honest[index])
    return found


def _read_items(
    items: Samples,
    workers: Workers,
    fatal: BadSamples,
    progress: bool,
    bad: BadSamples | None,
) -> list[Any]:
    rows = range(len(items))
    values: list[Any] = [None] * len(items)
    with tqdm(total=len(items), desc="labels", disable=not progress, delay=2) as bar:

        def take(number: int, samples: list[Sample]) -> None:
            for index, value in sorted(samples, key=lambda sample: sample[0]):
                if isinstance(value, BadSampleError):
                    if bad is None:
                        raise value
                    bad[index], value = value, 0
                values[index] = value
            bar.update(len(samples))

        jobs = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        SampleReader(items, workers, fatal).read(jobs, take)
    return values
