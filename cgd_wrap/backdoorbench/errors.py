"""The errors that reading BackdoorBench's files may raise."""

from __future__ import annotations

from cgd_wrap.errors import CGDError, DatasetError


class UnsafeFileError(CGDError, ValueError):
    """A file would have to run code to be read, or is damaged."""


class AttackResultError(DatasetError):
    """A result folder of BackdoorBench can't be used; the message lists all faults."""
