"""Choosing a few samples to look at, where looking at all would take too long."""

from __future__ import annotations


def spread(length: int, count: int) -> list[int]:
    """Up to ``count`` distinct indices in [0, length), evenly spaced, first and last included."""
    if length <= count:
        return list(range(length))
    return [round(k * (length - 1) / max(count - 1, 1)) for k in range(count)]
