from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset_zoo import LABELS, N, pil
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.data.label_values import as_class_indices
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.errors import DatasetError

PLAIN = SampleLayout(0, 1)


def with_labels(labels) -> list:
    return [(pil(0), label) for label in labels]


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        torch.tensor,
        lambda y: [np.int32(v) for v in y],
        lambda y: [torch.tensor(v) for v in y],
        lambda y: [float(v) for v in y],
        lambda y: np.array(y)[:, None],
        lambda y: [torch.tensor([v]) for v in y],
        lambda y: list(torch.eye(3)[y]),
        lambda y: np.eye(3, dtype=np.uint8)[y],
        lambda y: [np.eye(3)[v] if k % 2 else v for k, v in enumerate(y)],
        lambda y: [str and v if k else np.float32(v) for k, v in enumerate(y)],
    ],
)
def test_lossless_kinds(convert):
    labels = as_class_indices(convert(LABELS), 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_integers_are_kept(values):
    assert as_class_indices(values, 100).tolist() == values
    assert as_class_indices(np.array(values, dtype=np.float32), None).tolist() == values


@pytest.mark.parametrize(
    ("worst", "shown"),
    [
        (-1, "-1"), (3, "3"), (1.5, "1.5"), (float("nan"), "nan"), (float("inf"), "inf"),
        ("cat", "'cat'"), ("1", "'1'"), (None, "None"), ([0, 1, 1], r"\[0, 1, 1\]"),
        (torch.tensor([0.5, 0.5, 0]), r"\[0.5, 0.5, 0.0\]"), (1e300, r"1e\+300"),
    ],
)  # fmt: skip
def test_unusable_labels_are_listed(worst, shown):
    values = [*LABELS[:7], worst, *LABELS[8:]]
    with pytest.raises(DatasetError, match=rf"1 of 12 labels.*\[0, 3\).*sample 7: {shown}\."):
        as_class_indices(values, 3)
    with pytest.raises(ValueError, match="sample 7"):
        read_labels(with_labels(values), PLAIN, 3)


def test_ten_are_shown_and_the_rest_counted():
    with pytest.raises(DatasetError, match=r"30 of 40 .*sample 10: 9, .*sample 19: 9, \.\.\."):
        as_class_indices([0] * 10 + [9] * 30, 3)


def test_too_few_samples_or_classes():
    with pytest.raises(DatasetError, match="at least 10 samples"):
        read_labels(with_labels(LABELS[:9]), PLAIN, 3)
    with pytest.raises(DatasetError, match="at least 2 classes"):
        read_labels(with_labels([1] * N), PLAIN, 3)
