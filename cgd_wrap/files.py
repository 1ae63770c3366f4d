"""Writing files as a whole or not at all, and checking which data stored results belong to."""

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


CACHE_ADVICE = "Choose another folder, or pass overwrite=True to scan() to replace it."


def write_atomically(path: Path, payload: bytes) -> None:
    """Write or replace a file as a whole or not at all; on return it is safely on the disk.

    The umask decides the file's mode.

    Raises:
        OSError: the file can't be written; on a full disk, with the bytes needed and free.
    """
    # On a shared disk, processes in different containers may have the same process number.
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
    """Write a value as JSON, as a whole file or not at all; equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a mapping from a JSON file; None if the file is missing, torn or nested too deeply."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def differing_fields(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """List the fields in which two fingerprints differ: name -> (found, wanted)."""
    names = sorted(set(found) | set(wanted))
    return {n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)}


def check_fingerprint(
    where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, advice: str = CACHE_ADVICE
) -> None:
    """Refuse stored results whose fingerprint isn't the wanted one.

    Args:
        where: file or folder of the results, for the message.
        found: the stored fingerprint.
        wanted: the fingerprint of what is asked for now.
        advice: what the user can do about it.

    Raises:
        CacheMismatchError: the fingerprints differ; the message names each differing field.
    """
    fields = differing_fields(found, wanted)
    if fields:
        lines = "\n".join(f"  {name}: {old!r} -> {new!r}" for name, (old, new) in fields.items())
        raise CacheMismatchError(
            f"{where} was made for something else. What differs (stored -> now):\n{lines}\n"
            f"{advice}",
            fields,
        )


def content_hash(payload: bytes) -> str:
    """Hash the bytes of a file: 32 hexadecimal digits."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
