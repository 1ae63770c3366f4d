from __future__ import annotations

import pytest
from dataset_zoo import (
    CLASSES,
    Items,
    Wrapper,
    build,
    pil,
)

from cgd_wrap.data.class_names import check_class_names, find_class_names
from cgd_wrap.data.layout import find_layout
from cgd_wrap.errors import DatasetError


@pytest.mark.parametrize(
    "kind", ["cifar10", "image folder", "timm", "table", "table, renamed", "subset of concat",
             "subset of table"]
)  # fmt: skip
def test_class_names(kind, tmp_path):
    dataset, _ = build(kind, tmp_path)
    assert find_class_names(dataset, find_layout(dataset)) == CLASSES
    assert find_class_names(dataset) == CLASSES


def test_class_names_elsewhere():
    assert find_class_names([(pil(0), 0)]) is None
    items = Items([])
    items.classes = [("tench", "Tinca tinca"), ("crane",), ("maillot",), ("maillot", "tank suit")]
    assert find_class_names(items) == ["tench", "crane", "maillot", "maillot, tank suit"]
    items.classes, items.class_to_idx = None, {"b": 0, "a": 1}
    assert find_class_names(Wrapper(items, None)) is None
    assert find_class_names(items) == ["b", "a"]


def test_class_names_are_checked_together():
    check_class_names(CLASSES)
    with pytest.raises(DatasetError, match=r"class 1 has an empty name; 'ant' names.*\[0, 2\]"):
        check_class_names(["ant", " ", "ant "])
    with pytest.raises(DatasetError, match="class 0: expected text, got 7"):
        check_class_names([7, "a"])
