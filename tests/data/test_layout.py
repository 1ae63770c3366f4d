from __future__ import annotations

from collections import OrderedDict, UserDict

import datasets
import numpy as np
import pytest
import torch
from dataset_zoo import KINDS, LABELS, Items, N, Pair, build, normalise, pil, table
from torch.utils.data import DataLoader, IterableDataset

from cgd_wrap.data.layout import SampleLayout, find_layout
from cgd_wrap.errors import BadSampleError, DatasetError

EXPECTED = {
    "table": ("img", "label"),
    "table as tensors": ("img", "label"),
    "table, renamed": ("pixel_values", "labels"),
    "subset of table": ("pixel_values", "labels"),
    "careless": ("picture", "y"),
    "dicts": ("img", "target"),
    "ordered dicts": ("image", "label"),
    "user dicts": ("pixel_values", "labels"),
    "label first": (1, 0),
}
IMAGE = pil(0)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_every_kind(kind, tmp_path):
    dataset, _ = build(kind, tmp_path)
    assert find_layout(dataset) == SampleLayout(*EXPECTED.get(kind, (0, 1)))


@pytest.mark.parametrize(
    ("sample", "layout"),
    [
        ((IMAGE, 3, "a path"), (0, 1)),
        ([IMAGE, 3], (0, 1)),
        (Pair(IMAGE, 3), (0, 1)),
        ((3, IMAGE), (1, 0)),
        ({"x": IMAGE, "y": 3}, ("x", "y")),
        (OrderedDict(y=3, x=IMAGE), ("x", "y")),
        (UserDict(y=3, x=IMAGE), ("x", "y")),
    ],
)
def test_structure_is_kept(sample, layout):
    layout = SampleLayout(*layout)
    changed = layout.with_label(sample, 1 << 41)
    assert type(changed) is type(sample)
    assert layout.label_of(changed) == 1 << 41
    assert layout.image_of(changed) is IMAGE
    assert layout.label_of(sample) == 3
    assert len(changed) == len(sample)
    if hasattr(sample, "keys"):
        assert list(changed) == list(sample)


@pytest.mark.parametrize(
    ("old", "kind", "shape"),
    [
        (3, int, ()),
        (3.0, int, ()),
        (np.int64(3), np.int64, ()),
        (np.uint8(3), np.int64, ()),
        (np.array([3]), np.ndarray, (1,)),
        (torch.tensor(3), torch.Tensor, ()),
        (torch.tensor(3, dtype=torch.int32), torch.Tensor, ()),
        (torch.tensor([3]), torch.Tensor, (1,)),
        (torch.eye(4)[3], torch.Tensor, ()),
    ],
)
def test_kind_of_label_is_kept(old, kind, shape):
    new = SampleLayout(0, 1).with_label((IMAGE, old), 1 << 41)[1]
    assert type(new) is kind
    assert np.shape(new) == shape
    assert np.asarray(new).item() == 1 << 41
    if kind is torch.Tensor:
        assert new.dtype == torch.int64


def test_keys_can_be_given():
    rows = [{"scan": IMAGE, "mask": IMAGE, "grade": 1, "age": 50}] * N
    for keys in ({"image_key": "scan"}, {"label_key": "grade"}):
        with pytest.raises(DatasetError, match="which key holds the"):
            find_layout(rows, **keys)
    assert find_layout(rows, image_key="scan", label_key="grade") == SampleLayout("scan", "grade")
    with pytest.raises(DatasetError, match="label_key='nothing' is not in sample 0"):
        find_layout(rows, image_key="scan", label_key="nothing")
    with pytest.raises(TypeError, match="expected an image at 'grade', got int"):
        find_layout(rows, image_key="grade", label_key="age")
    assert find_layout([(IMAGE, 1, 7)] * N, label_key=2) == SampleLayout(0, 2)


def test_names_decide_between_label_columns():
    features = {
        "image": datasets.Image(),
        "coarse_label": datasets.ClassLabel(names=["x", "y"]),
        "fine_label": datasets.ClassLabel(names=["a", "b", "c"]),
    }
    rows = {"image": [IMAGE] * N, "coarse_label": [0] * N, "fine_label": LABELS}
    both = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    assert find_layout(both) == SampleLayout("image", "fine_label")


def test_the_tensor_that_is_trained_on_comes_before_the_raw_image():
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    rows = {"image": [IMAGE] * N, "label": LABELS}
    both = datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    def add_pixels(batch):  # as transformers' own image-classification script does
        return {**batch, "pixel_values": [torch.zeros(3, 8, 8) for _ in batch["image"]]}

    both.set_transform(add_pixels)
    assert find_layout(both) == SampleLayout("pixel_values", "label")
    assert find_layout(both, image_key="image") == SampleLayout("image", "label")


def test_what_is_not_map_style():
    class Stream(IterableDataset):
        def __iter__(self):
            yield IMAGE, 0

    for stream in (Stream(), table().to_iterable_dataset(), iter([(IMAGE, 0)])):
        with pytest.raises(TypeError, match="map-style"):
            find_layout(stream)
    with pytest.raises(TypeError, match=r"pass loader\.dataset"):
        find_layout(DataLoader([(IMAGE, 0)] * N))
    with pytest.raises(TypeError, match=r"one split of it"):
        find_layout(datasets.DatasetDict(train=table()))
    with pytest.raises(DatasetError, match="no samples"):
        find_layout([])


@pytest.mark.parametrize("sample", [3, IMAGE, (IMAGE,), (1, 2), ("a", "b"), {"a": 1}, None])
def test_items_without_an_image(sample):
    with pytest.raises(TypeError, match="sample"):
        find_layout([sample] * N)


def test_unreadable_samples_are_passed_over():
    class Broken(Items):
        def __getitem__(self, index):
            if self.items[index] is None:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    assert find_layout(Broken([None, (IMAGE, 1), *[(IMAGE, 0)] * 10])) == SampleLayout(0, 1)
    with pytest.raises(BadSampleError, match=r"sample 0 .*truncated") as caught:
        find_layout(Broken([None] * N))
    assert isinstance(caught.value.__cause__, OSError)


def test_tensors_as_given_are_images():
    assert find_layout([(normalise(IMAGE), torch.eye(3)[1])] * N) == SampleLayout(0, 1)
