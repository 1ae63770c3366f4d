from __future__ import annotations

import time

import datasets
import numpy as np
import pytest
import torch
from dataset_zoo import FOLDER_ORDER, LABELS, Items, N, cifar10, image_folder, pil, timm_folder
from torch.utils.data import ConcatDataset, Subset

from cgd_wrap.data.labels import label_column, read_labels
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.sources import readable
from cgd_wrap.data.workers import Workers
from cgd_wrap.errors import BadSampleError, DatasetError

PLAIN = SampleLayout(0, 1)


def with_labels(labels) -> list:
    return [(pil(0), label) for label in labels]


def reverse(label: int) -> int:
    return 2 - label


def test_target_transforms_apply(tmp_path):
    files = image_folder(tmp_path / "files", target_transform=reverse)
    expected = [2 - LABELS[i] for i in FOLDER_ORDER]
    assert read_labels(files, PLAIN, 3).tolist() == expected
    cifar = cifar10(tmp_path / "cifar", target_transform=reverse)
    assert read_labels(cifar, PLAIN, 3).tolist() == [2 - y for y in LABELS]
    timm = timm_folder(tmp_path / "files")
    timm.target_transform = reverse
    assert read_labels(timm, PLAIN, 3).tolist() == expected


def test_columns_are_read_without_items(tmp_path):
    from torchvision.datasets import SVHN, Flowers102, ImageFolder

    svhn = SVHN.__new__(SVHN)
    svhn.data = np.zeros((N, 3, 8, 8), dtype=np.uint8)
    svhn.labels, svhn.transform, svhn.target_transform = np.array(LABELS), None, None
    assert read_labels(svhn, PLAIN, 3).tolist() == LABELS
    flowers = Flowers102.__new__(Flowers102)
    flowers._labels, flowers._image_files = LABELS, ["gone.jpg"] * N
    assert read_labels(flowers, PLAIN, 3).tolist() == LABELS
    large = ImageFolder.__new__(ImageFolder)
    large.samples = [(f"/gone/{i}.jpg", i % 1000) for i in range(1_000_000)]
    large.targets = [target for _, target in large.samples]
    large.loader, large.transform, large.target_transform = open, None, None
    start = time.perf_counter()
    labels = read_labels(
        Subset(ConcatDataset([large, large]), range(999_990, 1_000_010)), PLAIN, 1000
    )
    assert labels.tolist() == [*range(990, 1000), *range(10)]
    assert time.perf_counter() - start < 5


def test_attributes_that_say_something_else_are_not_trusted(tmp_path):
    class Poisoned(type(cifar10(tmp_path))):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], 2

    poisoned = cifar10(tmp_path)
    poisoned.__class__ = Poisoned
    with pytest.raises(DatasetError, match="all 12 samples have label 2"):
        read_labels(poisoned, PLAIN, 3)
    files = image_folder(tmp_path / "files")
    files.targets = [0] * N  # ImageFolder serves its samples, whatever this says
    assert read_labels(files, PLAIN, 3).tolist() == [LABELS[i] for i in FOLDER_ORDER]
    items = Items(with_labels(LABELS))
    items.targets = [0] * N
    assert label_column(items, PLAIN) is None


def test_labels_changed_by_a_tables_transform():
    names = datasets.ClassLabel(names=["a", "b", "c"])
    rows = {"img": [pil(i) for i in range(N)], "label": LABELS}
    features = datasets.Features({"img": datasets.Image(), "label": names})
    plain = datasets.Dataset.from_dict(rows, features=features)
    turned = plain.with_transform(lambda b: {"x": b["img"], "y": [2 - y for y in b["label"]]})
    assert read_labels(turned, SampleLayout("x", "y"), 3).tolist() == [2 - y for y in LABELS]


def test_tensor_labels_from_workers():
    items = with_labels([torch.tensor(y) for y in LABELS])
    assert read_labels(items, PLAIN, 3, workers=Workers(1)).tolist() == LABELS


def test_labels_of_timm_and_wrapped_readers(tmp_path):
    timm = timm_folder(tmp_path)
    expected = [LABELS[i] for i in FOLDER_ORDER]
    assert label_column(timm, PLAIN) == label_column(readable(timm), PLAIN) == expected
    subset = Subset(readable(timm), range(2, 12))
    assert read_labels(subset, PLAIN, 3).tolist() == expected[2:]


def test_samples_that_cannot_be_read():
    class SomeUnreadable(Items):
        def __getitem__(self, index):
            if index == 4:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    items = SomeUnreadable(with_labels(LABELS))
    with pytest.raises(BadSampleError, match=r"sample 4 .*truncated"):
        read_labels(items, PLAIN, 3)
    expected = [0 if i == 4 else y for i, y in enumerate(LABELS)]
    assert read_labels(items, PLAIN, 3, bad={}).tolist() == expected
    assert read_labels(items, PLAIN, 3, bad={}, workers=Workers(1)).tolist() == expected
