"""Checks of an attack's arguments."""

from __future__ import annotations


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise a ValueError that names an attack's argument, unless the condition ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got!r}.")
