"""Temporary cache folders, for guards without a ``cache_dir``; all processes share a folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from cgd_wrap.processes import Runtime


class TemporaryCache:
    """Makes temporary folders; a folder is removed with this object, or when another is made."""

    def __init__(self) -> None:
        self._removal: weakref.finalize[Any, Any] | None = None  # removes the folder when called

    def folder(self, runtime: Runtime) -> Path:
        """Make a new folder, the same on every process; all processes must call this method."""
        if self._removal is not None:
            self._removal()
        if not runtime.is_main:
            return Path(runtime.share(""))
        folder = tempfile.mkdtemp(prefix="cgd-wrap-")
        self._removal = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(runtime.share(folder))
