"""Files that are there whole or not at all, and what they belong to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgd_wrap.errors import CacheMismatchError

FORMAT = 1


def write_atomically(path: Path, payload: bytes) -> None:
    """Replace a file as a whole, durable before this returns; the umask decides its mode.

    Raises:
        OSError: with what is needed and what is free, if the disk is full.
    """
    # Processes in several containers may have the same number, on one shared disk.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            message = f"no space for {path}: {len(payload)} bytes needed, {free} free"
            raise OSError(error.errno, message) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, the same bytes for the same value."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A stored mapping; None where there is none, or it is torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def differing_fields(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Fields of two fingerprints that differ: name -> (found, wanted)."""
    names = sorted(set(found) | set(wanted))
    return {n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)}


def check_fingerprint(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise for stored results that belong to something else.

    Raises:
        CacheMismatchError: naming each field that differs.
    """
    fields = differing_fields(found, wanted)
    if fields:
        lines = "\n".join(f"  {name}: {old!r} -> {new!r}" for name, (old, new) in fields.items())
        raise CacheMismatchError(
            f"{where} was made for something else. What differs (stored -> now):\n{lines}\n"
            "Choose another folder, or pass overwrite=True to scan() to replace it.",
            fields,
        )


def content_hash(payload: bytes) -> str:
    """The hash of a file's bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
