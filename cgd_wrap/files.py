"""Writing files as a whole or not at all, and checking which data stored results belong to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from cgd_wrap.errors import CacheMismatchError, StoredFileError

VOLATILE = "volatile"  # field of a fingerprint that names the parts that mere use changes
MOST_LINES = 20  # of a message

FORMAT = 2  # of caches and saved guards; 1 had no seals
DAY = 24 * 60 * 60  # seconds; no file takes as long to write
TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})\.(?P<process>\d+)-[0-9a-f]{8}\.tmp")

CACHE_ADVICE = "Choose another folder, or pass overwrite=True to scan() to replace it."


def write_atomically(path: Path, payload: bytes) -> None:
    """Write or replace a file as a whole or not at all; on return it is safely on the disk.

    The umask decides the file's mode. A link is replaced, and what it leads to is left alone. What
    killed processes left in the folder is cleared away: see :func:`clear_leftovers`.

    Raises:
        OSError: the file can't be written; on a full disk, with the bytes needed and free.
    """
    clear_leftovers(path.parent)
    name = f".{path.name}.{_host()}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            what = "no space" if error.errno == errno.ENOSPC else "no space within the quota"
            message = f"{what} for {path}: {len(payload)} bytes needed, {free} free on the disk"
            raise OSError(error.errno, message) from error
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    These are the files of processes of this host that have ended, and all files older than a day. A
    folder that is missing or read-only is left as it is.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            ended = found["host"] == _host() and not _is_running(int(found["process"]))
            with suppress(OSError):  # another process may have removed it
                if ended or time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY:
                    os.unlink(entry.path)


@cache
def _host() -> str:
    """Eight digits that are the same for all processes whose numbers can be compared with ours.

    Containers of one host, and clones of a machine, may have the same name but count their
    processes by themselves.
    """
    parts = [platform.node()]
    with suppress(OSError):  # both are Linux's
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return content_hash("\n".join(parts).encode())[:8]


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere, os.kill with 0 may end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def check_folder(folder: Path) -> None:
    """Refuse a folder of results that is no folder, or that a link leads out of its parent.

    The parent may itself be a link: the user has chosen it.

    Raises:
        StoredFileError: nothing was written.
    """
    if not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise StoredFileError(
            f"{folder} is a link to {folder.resolve()}, out of {folder.parent}; nothing is written "
            "there. Remove the link, or choose the folder that it leads to."
        )
    for part in (folder, *folder.parents):
        if part.exists():
            if part.is_dir():
                return
            raise StoredFileError(f"{part} is a file, but a folder is needed: choose another one")


def read_bytes(path: Path) -> bytes | None:
    """Read a file; None if it is missing.

    Raises:
        StoredFileError: there is something else in its place, such as a folder, which can't be
            replaced, or a pipe, which would never end.
    """
    if path.exists() and not path.is_file():
        raise StoredFileError(f"{path} is in the way, where a file is needed: remove it")
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as a whole file or not at all; equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a mapping from a JSON file; None if the file is missing, torn or nested too deeply.

    Raises:
        StoredFileError: as for :func:`read_bytes`.
    """
    try:
        value = json.loads((read_bytes(path) or b"").decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def differing_fields(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """List the fields in which two fingerprints differ: name -> (found, wanted)."""
    names = sorted(set(found) | set(wanted))
    return {n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)}


def agreed(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Take over, from a stored fingerprint, the parts that the use of an object changes.

    Each fingerprint may name such parts under ``volatile``. Whether they are the same says nothing.

    Args:
        found: the stored fingerprint; it may be empty.
        wanted: the fingerprint of what is asked for now.

    Returns:
        The wanted fingerprint, equal to the stored one if only volatile parts differ.
    """
    if not found:
        return dict(wanted)
    changed = {*found.get(VOLATILE, ()), *wanted.get(VOLATILE, ())}

    def is_volatile(name: str) -> bool:
        cuts = [0, *(i for i, mark in enumerate(name) if mark in ".[ "), len(name)]
        return name == VOLATILE or any(name[:cut] in changed for cut in cuts)

    kept = {name: value for name, value in wanted.items() if not is_volatile(name)}
    return kept | {name: value for name, value in found.items() if is_volatile(name)}


def check_fingerprint(
    where: Path | str,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    advice: str = CACHE_ADVICE,
) -> None:
    """Refuse stored results whose fingerprint isn't the wanted one.

    Args:
        where: file or folder of the results, or their name, for the message.
        found: the stored fingerprint.
        wanted: the fingerprint of what is asked for now.
        advice: what the user can do about it.

    Raises:
        CacheMismatchError: the fingerprints differ; the message names each differing field.
    """
    fields = differing_fields(found, wanted)
    if fields:
        each = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in fields.items()]
        more = [f"and {len(each) - MOST_LINES} more"] if len(each) > MOST_LINES else []
        differing = "; ".join(each[:MOST_LINES] + more)
        raise CacheMismatchError(
            f"{where} was made for something else. What differs (stored -> now): {differing}. "
            f"{advice}",
            fields,
        )


def content_hash(payload: bytes) -> str:
    """Hash the bytes of a file: 32 hexadecimal digits."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
