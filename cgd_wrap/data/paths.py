"""Finding the image file of a sample, where the dataset knows the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cgd_wrap.data.sources import ReaderImages, getitem_home, held, is_table, is_timm, locate

FILE_ATTRIBUTES = ("samples", "imgs", "_samples", "_image_files", "_images", "image_paths", "paths")


def image_path(dataset: Any, index: int) -> str | None:
    """Path of the image file of sample ``index``, or None where the dataset doesn't know it."""
    try:
        leaf, index = locate(dataset, index)
        if is_table(leaf):
            return _path_in_table(leaf, index)
        if isinstance(leaf, ReaderImages):
            return image_path(leaf.dataset, index)
        if is_timm(leaf):
            return str(leaf.reader.filename(index, absolute=True))
        for name in FILE_ATTRIBUTES:
            entries = held(leaf, name)
            if isinstance(entries, Sequence) and len(entries) == len(leaf):
                return _as_path(entries[index])
        below = (held(leaf, name) for name in ("dataset", "raw", "view"))
        base = next((one for one in below if one is not None), None)
        if getitem_home(leaf).startswith("cgd_wrap.") and base is not None:
            indices = held(leaf, "indices")
            return image_path(base, index if indices is None else int(indices[index]))
    except (LookupError, AttributeError, NotImplementedError, TypeError, ValueError, OSError):
        return None  # a path helps the reader of a report, and is never worth a failure
    return None


def _as_path(entry: object) -> str | None:
    entry = entry[0] if isinstance(entry, (tuple, list)) and entry else entry
    return os.fspath(entry) if isinstance(entry, (str, os.PathLike)) else None


def _path_in_table(table: Any, index: int) -> str | None:
    pictures = [n for n in table.column_names if type(table.features[n]).__name__ == "Image"]
    if len(pictures) != 1:
        return None
    row = table.with_format("arrow").select_columns(pictures)[int(index)]
    path = row.column(pictures[0]).combine_chunks().field("path")[0].as_py()
    return str(path) if path is not None else None
