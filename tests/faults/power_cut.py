"""A machine that stops at any system call that changes a file, as a process does that is killed.

By default :class:`PowerCut` is raised at the call, and at every later one, so that nothing that the
library cleans up reaches the disk. ``stop=kill`` kills the process itself.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")


class PowerCut(BaseException):
    """The machine has stopped."""


def kill() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def power_cut(
    folder: Path, before: int | None, stop: Callable[[], None] | None = None
) -> Iterator[list[str]]:
    """Stop before a system call that changes a file, or its folder, below a folder.

    A file that was being written keeps half of its bytes.

    Args:
        folder: other folders don't count.
        before: number of the call, from 0; None never stops.
        stop: stops the machine.

    Yields:
        The calls that were made, or would have been the next.
    """
    calls: list[str] = []

    def count(name: str, *files: Any) -> None:
        if not any(str(file).startswith(str(folder)) for file in files):
            return
        if before is None or len(calls) <= before:
            calls.append(f"{name} {Path(str(files[-1])).name}")
        if before is not None and len(calls) > before:
            if stop is not None:
                stop()
            raise PowerCut(calls[-1])

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            count(name, *arguments)
            return plain(*arguments, **named)

        return call

    def fsync(number: int, plain: Callable[[int], None] = os.fsync) -> None:
        try:
            count("fsync", os.readlink(f"/proc/self/fd/{number}"))
        except PowerCut:
            with suppress(OSError):  # a folder can't be cut
                os.ftruncate(number, os.fstat(number).st_size // 2)
            raise
        plain(number)

    def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            count("open", file)
        return plain_open(file, mode, *rest, **named)

    plain_open = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, counted(name))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(builtins, "open", open_file)
        yield calls
