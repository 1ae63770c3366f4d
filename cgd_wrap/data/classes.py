"""Reading a dataset's class names and labels together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.data.class_names import resolve_class_names
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.randomness import plain_torch


@plain_torch()
def names_and_labels(
    dataset: Any, layout: SampleLayout, class_names: Sequence[str] | None, *, record_bad: bool
) -> tuple[list[str], Int[Tensor, "n"]]:
    """Read the names of a dataset's classes, and the label of each sample.

    Args:
        dataset: the user's dataset.
        layout: where a sample holds its label.
        class_names: names that the user gave, or None.
        record_bad: give unreadable samples label 0 instead of raising an error. Where a label can't
            be read without the image, any label does for a bad sample.

    Raises:
        DatasetError: labels or class names are unusable, or don't fit each other.
    """
    names = resolve_class_names(dataset, layout, class_names)
    return names, read_labels(dataset, layout, len(names), unreadable=0 if record_bad else None)
