"""The names of a dataset's classes, as CLIP's prompts need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cgd_wrap.data.labels import table_label_column
from cgd_wrap.data.layout import LABEL_NAMES, SampleLayout
from cgd_wrap.data.sources import is_table
from cgd_wrap.errors import DatasetError

NAME_ATTRIBUTES = ("classes", "class_names")
INDEX_ATTRIBUTES = ("class_to_idx", "class_name_to_idx")
CHILD_ATTRIBUTES = ("reader", "dataset", "datasets")


def find_class_names(dataset: Any, layout: SampleLayout | None = None) -> list[str] | None:
    """Class names in the order of the labels, or None where the dataset doesn't know them.

    Names are looked for in ``features`` of a ``datasets.Dataset``, and in ``classes``,
    ``class_names`` and ``class_to_idx`` of the dataset, of timm's reader, and of wrapped datasets.

    Args:
        dataset: any map-style dataset.
        layout: where an item holds its label; decides between several label columns.
    """
    if is_table(dataset):
        return _names_in_table(dataset, layout)
    for name in NAME_ATTRIBUTES:
        names = getattr(dataset, name, None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 0:
            return _plain_names(names)
    for name in INDEX_ATTRIBUTES:
        index_of = getattr(dataset, name, None)
        if isinstance(index_of, Mapping) and sorted(index_of.values()) == [*range(len(index_of))]:
            found = sorted(index_of, key=lambda key: int(index_of[key]))
            return [str(key) for key in found] or None
    for name in CHILD_ATTRIBUTES:
        below = getattr(dataset, name, None)
        if isinstance(below, (list, tuple)) and below:
            every = [find_class_names(part, layout) for part in below]
            return every[0] if all(names == every[0] for names in every) else None
        if below is not None and not isinstance(below, (str, Mapping)):
            return find_class_names(below, layout)
    return None


def check_class_names(names: Sequence[object]) -> None:
    """Refuse class names that CLIP could not tell apart.

    Raises:
        DatasetError: some names are no text, empty, or used twice; the message lists them.
    """
    faults = [f"class {k}: expected text, got {n!r}" for k, n in enumerate(names)
              if not isinstance(n, str)]  # fmt: skip
    texts = [name.strip() if isinstance(name, str) else None for name in names]
    faults += [f"class {k}: {text!r} isn't Unicode text" for k, text in enumerate(texts)
               if text and not text.isprintable() and _has_lone_bytes(text)]  # fmt: skip
    faults += [f"class {k} has an empty name" for k, text in enumerate(texts) if text == ""]
    counts = Counter(text for text in texts if text)
    for text, count in counts.items():
        if count > 1:
            where = [k for k, other in enumerate(texts) if other == text]
            faults.append(f"{text!r} names the classes {where}")
    if len(names) < 2:
        faults.append(f"expected at least 2 classes, got {len(names)}")
    if faults:
        raise DatasetError(
            "unusable class names: " + "; ".join(faults[:10]) + ("; ..." if faults[10:] else "")
            + ". Pass class_names= with one distinct description per class, in label order"
        )  # fmt: skip


def _has_lone_bytes(text: str) -> bool:
    """Whether a text stands for bytes that aren't UTF-8, as old file names do."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _names_in_table(table: Any, layout: SampleLayout | None) -> list[str] | None:
    typed = [n for n in table.column_names if type(table.features[n]).__name__ == "ClassLabel"]
    if layout is not None:
        column = table_label_column(table, layout)
    else:
        named = [name for name in LABEL_NAMES if name in typed]
        column = typed[0] if len(typed) == 1 else (named[0] if named else None)
    return [str(name) for name in table.features[column].names] if column in typed else None


def _plain_names(names: Sequence[Any]) -> list[str]:
    """Turn names into texts; synonyms (torchvision's ImageNet) into the first one, if unique."""
    first = [n[0] if isinstance(n, (tuple, list)) and n else n for n in names]
    counts = Counter(map(str, first))
    return [
        ", ".join(map(str, full)) if isinstance(full, (tuple, list)) and counts[str(short)] > 1
        else str(short)
        for short, full in zip(first, names, strict=True)
    ]  # fmt: skip


def resolve_class_names(
    dataset: Any, layout: SampleLayout, given: Sequence[str] | None
) -> list[str]:
    """Return the given class names, or else the dataset's own.

    Raises:
        DatasetError: there are no names, some names are empty or equal, or the given names are the
            dataset's own in another order than the labels'.
    """
    own = find_class_names(dataset, layout)
    if given is None:
        if own is None:
            raise DatasetError(
                f"no class names can be found in {type(dataset).__name__}: pass class_names=, one "
                "name per class, in the order of the labels"
            )
        given = own
    if isinstance(given, str):
        raise DatasetError(f"class_names must be a list of names, got the one text {given!r}")
    names = list(given)
    check_class_names(names)
    if own is not None and names != own and sorted(names) == sorted(own):
        raise DatasetError(
            "class_names are the dataset's names in another order than its labels: got "
            f"{names[:10]}, the dataset has {own[:10]}. Leave class_names out, or put them in order"
        )
    return names
