"""Files that know what they are: sealed by a hash over their content and their place.

A file that was flipped, cut off, swapped with another or copied from elsewhere doesn't open: its
seal fits neither its content nor the place where it is read. Such a file counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cgd_wrap.files import read_bytes, read_json, write_atomically, write_json

SEAL = "seal"


def write_sealed(
    path: Path,
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    place: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors and notes as one safetensors file, as a whole or not at all.

    Equal values give equal bytes.

    Args:
        path: the file; replaced if it is there.
        tensors: tensors by name; each is stored by itself, also where two share memory.
        place: JSON values that say what the file is and where it belongs, such as its kind, its
            number and the fingerprint of its data. Not stored, but part of the seal.
        notes: JSON values that are stored with the tensors.

    Raises:
        OSError: the file can't be written; on a full disk, with the bytes needed and free.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = notes or {}
    sealed = {"notes": known, SEAL: _seal(place, _canonical(known), dense)}
    # Under one name, since safetensors writes several in a random order.
    metadata = {"sealed": _canonical(sealed)}
    write_atomically(path, save({n: t.clone() for n, t in dense.items()}, metadata))


def read_sealed(
    path: Path, place: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the tensors and notes that :func:`write_sealed` wrote for the same place.

    Returns:
        Tensors by name, on the CPU, and the notes; None if the file is missing, damaged, or belongs
        to another place.

    Raises:
        StoredFileError: as for :func:`cgd_wrap.files.read_bytes`.
    """
    payload = read_bytes(path)
    if payload is None:
        return None
    try:
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        tensors, sealed = load(payload), json.loads(header["__metadata__"]["sealed"])
        if sealed[SEAL] != _seal(place, _canonical(sealed["notes"]), tensors):
            return None
        return tensors, sealed["notes"]
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None


def write_sealed_json(path: Path, value: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    """Write a mapping as a JSON file with a seal; see :func:`write_sealed`."""
    write_json(path, {**value, SEAL: _seal(place, _canonical(value), {})})


def read_sealed_json(path: Path, place: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the mapping that :func:`write_sealed_json` wrote for the same place; None otherwise."""
    found = read_json(path)
    if found is None or found.pop(SEAL, None) != _seal(place, _canonical(found), {}):
        return None
    return found


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _seal(place: Mapping[str, Any], notes: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash place, notes and tensors; each part counts with its length."""
    total = blake2b(digest_size=16)
    for text in (_canonical(place), notes):
        total.update(f"{len(text)} {text}".encode())
    for name, tensor in sorted(tensors.items()):
        described = f"{name!r} {tensor.dtype} {tuple(tensor.shape)}"
        total.update(f"{len(described)} {described}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
