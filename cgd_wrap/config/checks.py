"""Which values a setting may have: pairs of a test and the words for it."""

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


def count(least: int = 1, *, optional: bool = False) -> Check:
    """A whole number, at least 1 or what is given."""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return accepts, f"a whole number of {least} or more" + (", or None" if optional else "")


def flag() -> Check:
    """A truth value."""
    return (lambda value: isinstance(value, bool)), "True or False"


def choice(*options: str) -> Check:
    """One of some texts."""
    return (lambda value: value in options), f"one of {list(options)}"


def prompt_templates() -> Check:
    """A prompt template, several of them, or the name of one of open_clip's sets."""
    return (
        _is_prompts,
        "a template with '{}' for the class name, several of them, 'openai' or 'simple'",
    )


def _is_prompts(value: Any) -> bool:
    if isinstance(value, str):
        return "{}" in value or value in ("openai", "simple")
    texts = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    return texts and len(value) > 0 and all("{}" in text for text in value)


def misordered(triggered: float, clean: float, slow: float | None) -> list[str]:
    """Say which thresholds of the split would let its parts overlap."""
    faults = []
    if triggered > clean:
        faults.append("sigma_triggered must not exceed sigma_clean, or the splits overlap")
    if slow is not None and slow < clean:
        faults.append("sigma_slow must not be below sigma_clean: raise it, too, or pass None")
    return faults
