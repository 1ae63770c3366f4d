"""What this adapter refuses."""

from __future__ import annotations

from cgd_wrap.errors import CGDError, DatasetError


class UnsafeFileError(CGDError, ValueError):
    """A file that would have to run code to be read, or that is damaged."""


class AttackResultError(DatasetError):
    """A result folder that can't be used; all faults are listed."""
