"""Class names and prompts of data sets whose own labels are mere numbers or codes.

This folder holds a JSON file per data set, with ``keys`` if the data set's folders carry codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownClasses:
    """Names of a data set's classes, and the prompt in which CLIP reads them.

    Attributes:
        names: class names in the order of the labels.
        prompt: zero-shot template with ``{}``, as the paper uses it.
        keys: the data set's own codes of the classes, such as WordNet ids, in the order of the
            labels.
    """

    names: tuple[str, ...]
    prompt: str
    keys: tuple[str, ...] = ()


def known_data_sets() -> list[str]:
    """List the data sets that :func:`known_classes` knows."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def known_classes(data_set: str) -> KnownClasses:
    """Read class names and prompt of ``"cifar10"``, ``"cifar100"``, ``"gtsrb"`` or ``"tiny"``.

    Raises:
        ValueError: ``data_set`` is none of these.
    """
    if data_set not in known_data_sets():
        raise ValueError(
            f"no class names are known for {data_set!r}, only for {known_data_sets()}: pass "
            "class_names= in the order of the labels"
        )
    text = (Path(__file__).parent / f"{data_set}.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return KnownClasses(tuple(found["names"]), found["prompt"], tuple(found.get("keys", ())))
