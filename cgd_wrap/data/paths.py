"""Finding the image files of samples, where the dataset knows the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from cgd_wrap.data.sources import ReaderImages, getitem_home, held, is_table, is_timm, locate

FILE_ATTRIBUTES = ("samples", "imgs", "_samples", "_image_files", "_images", "image_paths", "paths")
UNKNOWN = (LookupError, AttributeError, NotImplementedError, TypeError, ValueError, OSError)


def image_path(dataset: Any, index: int) -> str | None:
    """Path of the image file of sample ``index``, or None where the dataset doesn't know it."""
    return ImagePaths(dataset).of(index)


class ImagePaths:
    """The paths of a dataset's image files; where a dataset keeps them is found out once.

    Args:
        dataset: any dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._leaves: dict[int, tuple[Any, Callable[[int], str | None] | None]] = {}

    def of(self, index: int) -> str | None:
        """Path of the image file of sample ``index``, or None where the dataset doesn't know it."""
        try:
            leaf, index = locate(self.dataset, index)
            if id(leaf) not in self._leaves:  # the leaf is kept, too, so that no other has its id
                self._leaves[id(leaf)] = leaf, _finder(leaf)
            find = self._leaves[id(leaf)][1]
            return find(index) if find else None
        except UNKNOWN:
            return None  # a path helps the reader of a report, and is never worth a failure


def _finder(leaf: Any) -> Callable[[int], str | None] | None:
    """How to find the path of a sample by its index; None where the dataset knows no paths."""
    if is_table(leaf):
        return _finder_in_table(leaf)
    if isinstance(leaf, ReaderImages):
        return ImagePaths(leaf.dataset).of
    if is_timm(leaf):
        return lambda index: str(leaf.reader.filename(index, absolute=True))
    for name in FILE_ATTRIBUTES:
        entries = held(leaf, name)
        if isinstance(entries, Sequence) and len(entries) == len(leaf):
            return lambda index: _as_path(entries[index])
    below = (held(leaf, name) for name in ("dataset", "raw", "view"))
    base = next((one for one in below if one is not None), None)
    if getitem_home(leaf).startswith("cgd_wrap.") and base is not None:
        indices, paths = held(leaf, "indices"), ImagePaths(base)
        return lambda index: paths.of(index if indices is None else int(indices[index]))
    return None


def _as_path(entry: object) -> str | None:
    entry = entry[0] if isinstance(entry, (tuple, list)) and entry else entry
    return os.fspath(entry) if isinstance(entry, (str, os.PathLike)) else None


def _finder_in_table(table: Any) -> Callable[[int], str | None] | None:
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    pictures = [n for n in table.column_names if type(table.features[n]).__name__ == "Image"]
    if len(pictures) != 1:
        return None
    paths = pc.struct_field(table.data.column(pictures[0]), "path")
    rows = None if table._indices is None else table._indices.column(0)

    def find(index: int) -> str | None:
        path = paths[index if rows is None else rows[index].as_py()].as_py()
        return None if path is None else str(path)

    return find
