"""Finding the files of a dataset, to notice by sizes and times that some were replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np

from cgd_wrap.data.probes import spread
from cgd_wrap.data.sources import children_of, is_concat, is_subset, is_table, is_timm

MOST_FIELDS = 8  # of a sample's entry in a list, such as (path, label)
PROBES = 5
THREADS, CHUNK = 8, 2048


def describe_files(paths: Sequence[str]) -> str:
    """Describe files by number and size, and by a hash of the sizes and times of all.

    A file that was replaced by another of equal size and time isn't noticed.

    Args:
        paths: the files; each is asked for its size and time, none is opened.

    Returns:
        For example ``400 files, 1234567 bytes, 0123456789abcdef``.
    """
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:  # a disk in the network answers slowly
        stats = np.array([*chain.from_iterable(pool.map(_stats, chunks))], dtype=np.int64)
    stats = stats.reshape(-1, 2)
    total = int(stats[:, 0].clip(min=0).sum())
    return (
        f"{len(paths)} files, {total} bytes, {blake2b(stats.tobytes(), digest_size=8).hexdigest()}"
    )


def _stats(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Size and time of each file; -1 for a file that is missing."""
    found = []
    for path in paths:
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            found.append((-1, -1))
        else:
            found.append((stat.st_size, stat.st_mtime_ns))
    return found


def files_of(dataset: Any) -> list[str]:
    """Find all files that a dataset's samples come from; of a subset, those of its samples.

    Found are lists and tables of paths that have an entry for each sample, whole or within a folder
    that the dataset names, and single files that an attribute names.
    """
    columns, single = _files(dataset, frozenset())
    return [path for path in dict.fromkeys(chain.from_iterable([*columns, single])) if path]


def _files(dataset: Any, above: frozenset[int]) -> tuple[list[list[str]], list[str]]:
    """Columns of paths with an entry for each sample, and paths of other files."""
    if id(dataset) in above:
        return [], []
    above |= {id(dataset)}
    if is_subset(dataset):
        columns, single = _files(dataset.dataset, above)
        indices = [int(index) for index in dataset.indices]
        return [[column[i] for i in indices] for column in columns], single
    if is_concat(dataset):
        each = [(len(part), *_files(part, above)) for part in dataset.datasets]
        width = max((len(columns) for _, columns, _ in each), default=0)
        joined = [
            [path for length, columns, _ in each
             for path in (columns[k] if k < len(columns) else [""] * length)]
            for k in range(width)
        ]  # fmt: skip
        return joined, [path for *_, single in each for path in single]
    if is_table(dataset):
        return [_existing(column, [""]) for column in _columns_of_table(dataset)], []
    if is_timm(dataset):
        return _files_of_leaf(dataset.reader, len(dataset))
    columns, single = _files_of_leaf(dataset, len(dataset))
    for child in children_of(dataset):
        inner, more = _files(child, above)
        single += [*chain.from_iterable(inner), *more]
    return columns, single


def _files_of_leaf(leaf: Any, length: int) -> tuple[list[list[str]], list[str]]:
    attributes = getattr(leaf, "__dict__", {})
    texts = [os.fspath(value) for value in attributes.values() if _is_path(value)]
    folders = ["", *(text for text in texts if os.path.isdir(text))]
    columns = [
        found for value in [leaf, *attributes.values()]
        for column in _columns(value, length) if (found := _existing(column, folders))
    ]  # fmt: skip
    single = [text for text in texts if os.path.isfile(text)]
    mapped = [value.filename for value in attributes.values() if isinstance(value, np.memmap)]
    return columns, [*single, *(os.fspath(path) for path in mapped if path is not None)]


def _columns(value: Any, length: int) -> Iterator[list[Any]]:
    """Yield columns of texts or paths, with an entry for each sample, from a list or table."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.dtype.kind in "OUS" else []
    if type(value).__module__.split(".")[0] in ("pandas", "polars"):
        named = [value[name] for name in value.columns] if hasattr(value, "columns") else [value]
        each = [column.to_list() for column in named if hasattr(column, "to_list")]
        yield from (column for column in each if len(column) == length and _is_path(column[0]))
    if not isinstance(value, (list, tuple)) or len(value) != length:
        return
    first = value[0]
    if _is_path(first):
        yield list(value)
    elif isinstance(first, (list, tuple, Mapping)) and len(first) <= MOST_FIELDS:
        for key in first if isinstance(first, Mapping) else range(len(first)):
            if _is_path(first[key]):
                with suppress(LookupError, TypeError):  # entries of other kinds
                    yield [entry[key] for entry in value]


def _columns_of_table(table: Any) -> Iterator[list[Any]]:
    """Yield the columns of a ``datasets.Dataset`` that hold paths of files that are there."""
    for name, feature in table.features.items():
        is_picture = type(feature).__name__ == "Image"
        if is_picture or getattr(feature, "dtype", None) in ("string", "large_string"):
            one = table.with_format("arrow").select_columns([name])
            some = _paths_in(one[spread(len(one), PROBES)], is_picture)
            if _existing(some, [""]):  # embedded images are large, and have no file
                yield _paths_in(one[:], is_picture)


def _paths_in(rows: Any, is_picture: bool) -> list[Any]:
    column = rows.column(0).combine_chunks()
    paths: list[Any] = (column.field("path") if is_picture else column).to_pylist()
    return paths


def _existing(column: list[Any], folders: Sequence[str]) -> list[str]:
    """The column as paths, in the first folder that has the files; empty if none has."""
    probes = [column[i] for i in spread(len(column), PROBES) if _is_path(column[i])]
    for folder in folders:
        if any(os.path.isfile(os.path.join(folder, probe)) for probe in probes):
            return [os.path.join(folder, path) if _is_path(path) else "" for path in column]
    return []


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and value != ""
