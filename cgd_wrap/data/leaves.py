"""Describing single values for a fingerprint: numbers, texts, arrays, images; nothing inside."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Collection
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.parameter import is_lazy

MAX_BYTES = 2**30
CHUNK = 2**16
SHOWN = 24  # bytes of a value that is shown as it is
DEVICE = re.compile(rb'"(cpu|cuda|mps|xpu|hpu|npu|xla)(:\d+)?"')
REPRESENTED = (range, slice, complex, re.Pattern)  # values of which repr tells all


class Leaves:
    """Describes values that refer to no other objects.

    Args:
        weights: count parameters by their values; otherwise by type and shape.
    """

    def __init__(self, *, weights: bool = True) -> None:
        self.weights, self.budget = weights, MAX_BYTES

    def text(self, value: Any) -> str | None:
        """Describe a value that refers to nothing else; None for any other value."""
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return self._array(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._bytes("bytes", bytes(value), "")
        if isinstance(value, Image.Image):
            return self._image(value)
        if isinstance(value, torch.device):
            return "a device"
        if isinstance(value, torch.jit.ScriptFunction):
            return f"script {brief(str(value.code).encode())}{self._constants(value)}"
        if isinstance(value, REPRESENTED) or type(value).__module__ == "operator":
            return f"{type_name(value)} {without_addresses(value)}"
        return None

    def _constants(self, script: Any) -> str:
        return "".join(f" {self._tensor(tensor)}" for tensor in constants_of_script(script))

    def _array(self, value: np.ndarray) -> str:
        name = f"{value.dtype.str} {value.shape}"
        if value.nbytes > self.budget:
            return f"large array {name}"
        return self._bytes("array", np.ascontiguousarray(value).reshape(-1).view(np.uint8), name)

    def _tensor(self, value: torch.Tensor) -> str:
        name = f"{value.dtype} {shape_of(value)}"
        trained = isinstance(value, nn.Parameter) or value.grad_fn is not None
        dense = value.layout == torch.strided and not (value.is_quantized or value.is_meta)
        if trained and not self.weights:
            return f"weights {name}"
        if not dense or is_lazy(value) or value.numel() * value.element_size() > self.budget:
            return f"large tensor {value.layout} {name}"
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return self._bytes("tensor", flat.as_subclass(torch.Tensor).numpy(), name)

    def _image(self, value: Image.Image) -> str:
        name = f"{value.mode} {value.size}"
        try:
            return self._bytes("image", value.tobytes(), name)
        except Exception as error:
            file = os.path.basename(str(getattr(value, "filename", "")))
            return f"bad image {type(error).__name__} {file}"

    def _bytes(self, kind: str, data: Any, name: str) -> str:
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        if size > self.budget:
            return f"large {kind} {name} {size}"
        self.budget -= size
        return f"{kind} {name} {blake2b(data, digest_size=16).hexdigest()}"


def constants_of_script(script: Any) -> list[torch.Tensor]:
    """List the tensors in code that ``torch.jit`` made, which the text of the code leaves out."""
    graph = getattr(script, "inlined_graph", None)  # a list of modules has none
    nodes = [] if graph is None else graph.findAllNodes("prim::Constant")
    return [
        node.t("value") for node in nodes
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]  # fmt: skip


def joined(kind: str, parts: Collection[bytes]) -> bytes:
    """Hash a sequence of parts with their lengths, which tell where a part ends."""
    total = blake2b(kind.encode(), digest_size=16)
    for part in parts:
        total.update(struct.pack("<q", len(part)))
        total.update(part)
    return total.digest()


def type_name(value: object) -> str:
    """Name the class of a value, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def shape_of(value: Any) -> str:
    """Describe the shape of a tensor; of another value, the class."""
    if isinstance(value, torch.Tensor):
        return "not known yet" if is_lazy(value) else str(tuple(value.shape))
    return type_name(value)


def without_addresses(value: object) -> str:
    """Represent a value without addresses in memory, which are new in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def brief(plain: bytes) -> str:
    """Show a short value as it is, and a longer one as a hash; a device is any device."""
    if DEVICE.fullmatch(plain):
        return "a device"
    if len(plain) <= SHOWN:
        return plain.decode()
    return f"value {joined('plain', [plain]).hex()}"


def as_json(value: Any) -> bytes | None:
    """Encode numbers, texts, paths and lists of these as bytes; None for any other value.

    JSON's encoder in C makes a file list of a million entries cheap.
    """
    if isinstance(value, (list, tuple)) and len(value) > CHUNK:
        chunks = [as_json(value[k : k + CHUNK]) for k in range(0, len(value), CHUNK)]
        parts = [chunk for chunk in chunks if chunk is not None]
        whole = b"chunks " + joined("chunks", parts).hex().encode()
        return whole if len(parts) == len(chunks) else None
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
