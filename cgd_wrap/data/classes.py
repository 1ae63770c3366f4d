"""What a dataset is labelled with: the names of its classes, and the label of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.data.class_names import resolve_class_names
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout


def names_and_labels(
    dataset: Any, layout: SampleLayout, class_names: Sequence[str] | None, *, record_bad: bool
) -> tuple[list[str], Int[Tensor, "n"]]:
    """The names of a dataset's classes, and its labels.

    Args:
        dataset: the user's.
        layout: where the label stands in a sample.
        class_names: given names, or None.
        record_bad: give unreadable samples label 0 instead of raising. Where a label can't be had
            without its image, any label does for a bad sample.

    Raises:
        DatasetError: labels or class names are unusable, or don't fit each other.
    """
    names = resolve_class_names(dataset, layout, class_names)
    return names, read_labels(dataset, layout, len(names), unreadable=0 if record_bad else None)
