"""Hashing what a dataset holds; the hash is equal in every process that opens the same data."""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.data.probes import spread
from cgd_wrap.data.reading import read_values
from cgd_wrap.data.sources import is_table, is_timm
from cgd_wrap.data.tables import describe_frame, describe_table
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.errors import BadSampleError

MAX_BYTES = 2**30
MAX_DEPTH = 60
CHUNK = 2**16
# Modules whose objects are machinery of the process: they hold no data, and walking never ends.
OPAQUE_MODULES = {
    *("_io", "io", "tempfile", "mmap", "socket", "sqlite3", "logging", "types", "builtins"),
    *("_thread", "threading", "multiprocessing", "concurrent", "asyncio", "queue", "subprocess"),
    *("re", "weakref", "functools"),
}
# Names of attributes (counters, open files) that change while a dataset is merely read.
VOLATILE = frozenset({"_consecutive_errors", "_lock", "lock", "_file", "_fp", "_handle"})


def dataset_fingerprint(
    dataset: Any,
    *,
    ignore: Collection[str] = ("transform", "transforms", "target_transform"),
) -> str:
    """Hash a dataset by structure: class names, attributes, arrays, file lists.

    No file is opened and no item is read. Arrays count by their bytes, up to 1 GiB in all; by
    type and shape alone beyond that. A ``datasets.Dataset`` counts by its cache files and their
    times, or by its content where it lives in memory.

    Args:
        dataset: any dataset.
        ignore: attributes to leave out, on every level.

    Returns:
        32 hexadecimal digits, the same in every process.
    """
    return _Hasher(frozenset(ignore) | VOLATILE).digest(dataset).hex()


def sample_fingerprint(
    view: Any,
    count: int = 64,
    *,
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> str:
    """Hash the pixels of evenly spaced samples; an unreadable sample counts by its reason.

    Args:
        view: gives PIL images or tensors by index, as ``RawImages`` and ``EvaluatedImages`` do.
        count: number of samples to read.
        workers: the processes that read.
        known: samples that are known to be bad; they count by their reason, and aren't read.

    Returns:
        32 hexadecimal digits.
    """
    total = blake2b(str(len(view)).encode(), digest_size=16)
    for found in read_values(_Hashed(view), spread(len(view), count), workers, known):
        bad = isinstance(found, BadSampleError)
        total.update(_joined("sample", [b"bad", found.reason.encode()]) if bad else found)
    return total.hexdigest()


class _Hashed(Dataset[bytes]):
    """The hash of each image of a view: much less to send from a worker than the image."""

    def __init__(self, view: Any) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> bytes:
        return _joined("sample", _pixels(self.view[index]))


def _pixels(image: Image.Image | torch.Tensor) -> list[bytes]:
    if isinstance(image, Image.Image):
        return [image.mode.encode(), repr(image.size).encode(), image.tobytes()]
    flat = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(image.dtype).encode(), repr(tuple(image.shape)).encode(), flat.numpy().tobytes()]


def _joined(kind: str, parts: Collection[bytes]) -> bytes:
    """Hash a sequence of parts with their lengths, which tell where a part ends."""
    total = blake2b(kind.encode(), digest_size=16)
    for part in parts:
        total.update(struct.pack("<q", len(part)))
        total.update(part)
    return total.digest()


class _Hasher:
    """Hashes an object and all that it refers to: every object once, up to a number of bytes."""

    def __init__(self, ignore: frozenset[str]) -> None:
        self.ignore = ignore
        self.budget = MAX_BYTES
        self.done: dict[int, tuple[Any, bytes]] = {}  # holds the object: its id stays unique
        self.open: dict[int, int] = {}

    def digest(self, value: Any) -> bytes:
        """Hash any object."""
        plain = _as_json(value)
        if plain is not None:
            return _joined("plain", [plain])
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.open:
            return _joined("cycle", [str(len(self.open) - self.open[id(value)]).encode()])
        if len(self.open) > MAX_DEPTH:
            return self._name("deep", value)
        self.open[id(value)] = len(self.open)
        result = self._walk(value)
        del self.open[id(value)]
        self.done[id(value)] = (value, result)
        return result

    def _walk(self, value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            items = [self.digest(k) + self.digest(v) for k, v in value.items()
                     if k not in self.ignore]  # fmt: skip
            return _joined("mapping", [self._name("kind", value), *sorted(items)])
        if isinstance(value, (list, tuple)):
            return _joined("sequence", [self.digest(item) for item in value])
        if isinstance(value, (set, frozenset)):
            return _joined("set", sorted(self.digest(item) for item in value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._bytes("bytes", bytes(value), "")
        if isinstance(value, Image.Image):
            return self._image(value)
        if isinstance(value, functools.partial):
            return _joined("partial", [self.digest([value.func, value.args, value.keywords])])
        return self._object(value)

    def _object(self, value: Any) -> bytes:
        if is_table(value):
            described, size = describe_table(value, self.budget)
            self.budget -= size
            return _joined("table", [self.digest(described)])
        if type(value).__module__.split(".")[0] == "pandas":
            return _joined("frame", [self.digest(describe_frame(value))])
        if is_timm(value):
            return _joined("timm", [self._name("reader", value.reader), self.digest(value.reader)])
        home = type(value).__module__.split(".")[0]
        if isinstance(value, (type, Callable)) and hasattr(value, "__qualname__"):  # type: ignore[arg-type]
            named = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
            return _joined("code", [named.encode()])
        attributes = {} if home in OPAQUE_MODULES else _attributes(value)
        kept = {k: v for k, v in attributes.items() if k not in self.ignore}
        parts = [k.encode() + self.digest(v) for k, v in sorted(kept.items())]
        return _joined("object", [self._name("kind", value), *parts])

    def _array(self, value: np.ndarray) -> bytes:
        if value.dtype.hasobject:
            return _joined("objects", [self.digest([list(value.shape), value.tolist()])])
        name = f"{value.dtype.str} {value.shape}"
        if value.nbytes > self.budget:
            return _joined("large array", [name.encode()])
        return self._bytes("array", np.ascontiguousarray(value).reshape(-1).view(np.uint8), name)

    def _tensor(self, value: torch.Tensor) -> bytes:
        name = f"{value.dtype} {tuple(value.shape)}"
        dense = value.layout == torch.strided and not (value.is_quantized or value.is_meta)
        size = value.numel() * value.element_size()
        if not dense or size > self.budget:
            return _joined("large tensor", [f"{value.layout} {name}".encode()])
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return self._bytes("tensor", flat.as_subclass(torch.Tensor).numpy(), name)

    def _image(self, value: Image.Image) -> bytes:
        name = f"{value.mode} {value.size}"
        try:
            return self._bytes("image", value.tobytes(), name)
        except Exception as error:
            file = os.path.basename(str(getattr(value, "filename", "")))
            return _joined("bad image", [f"{type(error).__name__} {file}".encode()])

    def _bytes(self, kind: str, data: Any, name: str) -> bytes:
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        if size > self.budget:
            return _joined(f"large {kind}", [f"{name} {size}".encode()])
        self.budget -= size
        return _joined(kind, [name.encode(), blake2b(data, digest_size=16).digest()])

    def _name(self, kind: str, value: Any) -> bytes:
        return _joined(kind, [f"{type(value).__module__}.{type(value).__qualname__}".encode()])


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes of an object, ``__slots__`` included, without values of a ``cached_property``."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    derived = _derived(type(value))  # type: ignore[arg-type]
    return {str(name): item for name, item in found.items() if name not in derived}


@functools.lru_cache
def _derived(kind: type) -> frozenset[str]:
    """Names of a class' cached properties, whose values are there only after a first read."""
    members = [item for each in kind.__mro__ for item in vars(each).items()]
    return frozenset(
        name for name, value in members if isinstance(value, functools.cached_property)
    )


def _as_json(value: Any) -> bytes | None:
    """Encode numbers, texts, paths and lists of these as bytes; None for any other value.

    JSON's encoder in C makes a file list of a million entries cheap.
    """
    if isinstance(value, (list, tuple)) and len(value) > CHUNK:
        chunks = [_as_json(value[k : k + CHUNK]) for k in range(0, len(value), CHUNK)]
        parts = [chunk for chunk in chunks if chunk is not None]
        return _joined("chunks", parts) if len(parts) == len(chunks) else None
    if value is not None and not isinstance(
        value, (bool, int, float, str, list, tuple, np.generic, PurePath)
    ):
        return None
    try:
        return json.dumps(value, default=_plain).encode()
    except (TypeError, ValueError, RecursionError):
        return None


def _plain(value: object) -> object:
    if isinstance(value, np.generic) and value.dtype.kind in "buifSU":
        item = value.item()
        return item.hex() if isinstance(item, bytes) else item
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(type(value).__name__)
