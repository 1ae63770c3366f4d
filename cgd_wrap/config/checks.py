"""What a setting may be: pairs of a test and its words, for CGDConfig."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = tuple[Callable[[Any], bool], str]


def number(
    low: float, high: float, *, above: bool = False, below: bool = False, optional: bool = False
) -> Check:
    """From ``low`` to ``high``; ``above`` and ``below`` leave these themselves out."""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (low < value if above else low <= value) and (
            value < high if below else value <= high
        )

    interval = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    return accepts, f"a number in {interval}" + (", or None" if optional else "")


def count(*, optional: bool = False) -> Check:
    """A whole number, at least 1."""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    return accepts, "a whole number of 1 or more" + (", or None" if optional else "")


def choice(*options: str) -> Check:
    """One of some texts."""
    return (lambda value: value in options), f"one of {list(options)}"


def is_prompts(value: Any) -> bool:
    """Whether this is a prompt template, several, or the name of a set of open_clip's."""
    if isinstance(value, str):
        return "{}" in value or value in ("openai", "simple")
    texts = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    return texts and len(value) > 0 and all("{}" in text for text in value)
