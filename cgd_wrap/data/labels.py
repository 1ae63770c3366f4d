"""Reading the labels of any dataset, without decoding images where possible."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from cgd_wrap.data.label_values import as_class_indices, same_label
from cgd_wrap.data.layout import LABEL_NAMES, SampleLayout
from cgd_wrap.data.paths import image_path
from cgd_wrap.data.pixels import classify_failure
from cgd_wrap.data.probes import spread
from cgd_wrap.data.sources import (
    ReaderImages,
    getitem_home,
    held,
    is_concat,
    is_subset,
    is_table,
    is_timm,
    passthrough,
    readable,
    untransformed,
)
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.randomness import kept_rng

LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "_targets")
SAMPLE_ATTRIBUTES = ("samples", "_samples", "imgs")
PROBES = 8


def read_labels(
    dataset: Any,
    layout: SampleLayout,
    num_classes: int | None,
    *,
    num_workers: int = 0,
    progress: bool = False,
    unreadable: int | None = None,
) -> Int64[Tensor, " n"]:
    """Read the label of every sample, as the training loop sees it.

    A column of the dataset is used if a few samples confirm it; otherwise all items are read,
    without their image transforms if the labels stay the same.

    Args:
        dataset: any map-style dataset.
        layout: where an item holds its label.
        num_classes: labels must be in [0, num_classes); None checks for negative ones only.
        num_workers: number of processes that read items, if there is no column to use.
        progress: show a bar while items are read.
        unreadable: label of samples that cannot be read; None raises an error instead.

    Raises:
        DatasetError: labels are no class numbers, or there are fewer than 10 samples or 2 classes.
        BadSampleError: an item cannot be read and ``unreadable`` is None.
    """
    with kept_rng():
        values = confirmed_column(dataset, layout)
        if values is None:
            values = _read_items(dataset, layout, num_workers, progress, unreadable)
    labels = as_class_indices(values, num_classes)
    if len(labels) < 10:
        raise DatasetError(f"expected at least 10 samples to rank, got {len(labels)}")
    if bool((labels == labels[0]).all()):
        raise DatasetError(
            f"expected at least 2 classes, but all {len(labels)} samples have label "
            f"{int(labels[0])}: ranks within one class separate nothing"
        )
    return labels


def confirmed_column(dataset: Any, layout: SampleLayout) -> Any:
    """Find the labels as one column, if the column agrees with a few items; else None."""
    column = label_column(dataset, layout)
    if column is None or len(column) != len(dataset):
        return None
    labels = _some_labels(readable(dataset), layout)
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


class _LabelReader(Dataset[Any]):
    """Reads labels alone; an error is returned, since not every exception survives a worker."""

    def __init__(self, source: Any, dataset: Any, layout: SampleLayout) -> None:
        self.source, self.dataset, self.layout = source, dataset, layout

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            label = self.layout.label_of(self.source[index])
            # A tensor would cross the process border as an open file, one per sample.
            return label.detach().cpu().numpy() if isinstance(label, Tensor) else label
        except Exception as error:
            path = image_path(self.dataset, index)
            bad = BadSampleError(
                index, classify_failure(error, path), f"{type(error).__name__}: {error}", path
            )
            bad.__cause__ = error
            return bad


def _label_source(dataset: Any, layout: SampleLayout) -> Any:
    """Find the form of the dataset that is cheapest to read and gives the same labels."""
    honest = readable(dataset)
    expected = _some_labels(honest, layout)
    for fill in (None, passthrough):
        try:
            candidate = untransformed(dataset, layout.image, fill)
            pairs = [(layout.label_of(candidate[i]), label) for i, label in expected.items()]
        except Exception:  # the dataset's code can't do without its transform
            continue
        if pairs and all(same_label(one, other) for one, other in pairs):
            return candidate
    return honest


def _some_labels(honest: Any, layout: SampleLayout) -> dict[int, Any]:
    """Read the labels of a few samples, by index; unreadable samples are left out."""
    found: dict[int, Any] = {}
    for index in spread(len(honest), PROBES):
        with suppress(Exception):
            found[index] = layout.label_of(honest[index])
    return found


def _read_items(
    dataset: Any, layout: SampleLayout, num_workers: int, progress: bool, unreadable: int | None
) -> list[Any]:
    reader = _LabelReader(_label_source(dataset, layout), dataset, layout)
    loader = DataLoader(
        reader,
        batch_size=64,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator().manual_seed(0),
    )
    values: list[Any] = []
    with tqdm(total=len(reader), desc="labels", disable=not progress, delay=2) as bar:
        for batch in loader:
            for value in batch:
                if isinstance(value, BadSampleError):
                    if unreadable is None:
                        raise value
                    value = unreadable
                values.append(value)
            bar.update(len(batch))
    return values
