"""Describing a ``datasets.Dataset`` or a data frame by plain values, to be hashed."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any


def describe_table(table: Any, budget: int) -> tuple[dict[str, Any], int]:
    """Describe a ``datasets.Dataset`` by plain values that change when its data do.

    The table's own ``_fingerprint`` is not used, since it changes with every ``set_transform``.

    Args:
        table: a ``datasets.Dataset``.
        budget: bytes of content that may be hashed; a larger table in memory counts by its size
            and schema.

    Returns:
        Plain values, and the number of bytes that were hashed.
    """
    files = [_describe_file(entry["filename"]) for entry in table.cache_files]
    described: dict[str, Any] = {
        "length": len(table),
        "columns": list(table.column_names),
        "features": repr(table.features),
        "files": files,
    }
    size = 0
    if not files:
        described["bytes"] = table.data.nbytes
        if table.data.nbytes <= budget:
            size = table.data.nbytes
            described["content"] = _hash_arrow(table.data.table)
    indices = table._indices
    if indices is not None:
        described["indices"] = indices.column(0).to_numpy()
        size += indices.nbytes
    return described, size


def describe_frame(frame: Any) -> list[Any]:
    """Describe a pandas object by its type, its names and the hashes of its rows."""
    import pandas as pd  # type: ignore[import-untyped]

    if not isinstance(frame, (pd.DataFrame, pd.Series, pd.Index)):
        return [type(frame).__qualname__]
    names = [str(name) for name in getattr(frame, "columns", [getattr(frame, "name", "")])]
    try:
        return [type(frame).__qualname__, names, pd.util.hash_pandas_object(frame).to_numpy()]
    except TypeError:  # cells that pandas cannot hash, such as lists
        return [type(frame).__qualname__, names, repr(frame.to_numpy().tolist())]


def _describe_file(path: str) -> list[Any]:
    try:
        stat = os.stat(path)
    except OSError:
        return [path]
    return [path, stat.st_size, stat.st_mtime_ns]


class _HashSink:
    """A writable file that keeps only the hash of all that is written."""

    closed = False

    def __init__(self) -> None:
        self.total = blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        """Add bytes to the hash."""
        view = memoryview(data)
        self.total.update(view)
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: no bytes are held back."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def _hash_arrow(table: Any) -> str:
    import pyarrow as pa  # type: ignore[import-untyped]

    sink = _HashSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        writer.write_table(table)
    return sink.total.hexdigest()
