from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision.datasets import FakeData
from torchvision.transforms.functional import pil_to_tensor

from cgd_wrap.attacks import SIG, BadNets, LabelFlip, PoisonedDataset
from cgd_wrap.errors import DatasetError

Make = Callable[..., Any]


def same_image(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode and first.tobytes() == second.tobytes()


def levels(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image)


# --- every kind of data set ---------------------------------------------------------------------


class Dicts:
    def __init__(self, base: Any) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.base[index]
        return {"id": str(index), "img": image, "fine_label": np.int64(label)}


def as_table(base: Any) -> Table:
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=base.classes)})
    return Table.from_dict({"img": base.images, "label": base.targets}, features=features)


def as_tuples(base: Any) -> list[tuple[Any, int, str]]:
    return [(*base[index], "more") for index in range(len(base))]


@pytest.mark.parametrize(
    "convert",
    [
        Dicts,
        as_table,
        as_tuples,
        lambda base: Subset(base, range(len(base))),
        lambda base: ConcatDataset([Subset(base, range(20)), Subset(base, range(20, len(base)))]),
    ],
)
def test_every_kind_gives_the_same_tuples(convert: Make, pictures: Make) -> None:
    base = pictures()
    expected, got = BadNets().poison(base), BadNets().poison(convert(base))
    assert torch.equal(got.poisoned, expected.poisoned)
    assert got.targets == expected.targets
    assert got.classes in (base.classes, None)
    for index in (0, 17, int(got.poisoned[0])):
        assert same_image(got[index][0], expected[index][0])
        assert got[index][1] == expected[index][1]
    assert BadNets().triggered(convert(base)).targets == BadNets().triggered(base).targets


def test_labels_are_read_without_images(pictures: Make) -> None:
    base = pictures(200)
    poisoned = BadNets().poison(base)
    assert base.reads <= 12
    before = base.reads
    LabelFlip().poison(base)
    assert base.reads - before <= 12 + 150  # it looks at every non-target image, once
    assert poisoned.targets[:4] != []


def test_targets_that_the_items_contradict_are_not_believed(pictures: Make) -> None:
    class Shifted(pictures):  # type: ignore[valid-type,misc]
        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return image, (label + 1) % 4

    base = Shifted()
    assert BadNets().poison(base).original_targets == [base[i][1] for i in range(len(base))]


def test_torchvision_with_a_target_transform_only() -> None:
    base = FakeData(20, (3, 8, 8), 2, target_transform=lambda label: 1 - label)
    assert BadNets().poison(base).original_targets == [base[i][1] for i in range(20)]


# --- refusals -----------------------------------------------------------------------------------


def transformed(base: Any) -> Any:
    base.transform = levels
    return base


@pytest.mark.parametrize(
    "convert",
    [
        transformed,
        lambda base: Subset(transformed(base), range(20)),
        lambda base: ConcatDataset([base, transformed(copy.copy(base))]),
        lambda base: as_table(base).with_transform(lambda batch: batch),
        lambda base: as_table(base).with_format("torch"),
        lambda base: FakeData(20, (3, 8, 8), 2, transform=levels),
        lambda base: BadNets().poison(base, transform=levels),
    ],
)
def test_a_transform_in_the_dataset_is_refused(convert: Make, pictures: Make) -> None:
    data = convert(pictures())
    for use in (BadNets().poison, BadNets().triggered):
        with pytest.raises(
            DatasetError, match=r"pass it on: \.poison\(dataset, transform=\.\.\.\)"
        ):
            use(data)


def test_tensors_are_refused(pictures: Make) -> None:
    base = pictures()
    data = [(levels(image), label) for image, label in zip(base.images, base.targets, strict=True)]
    with pytest.raises(DatasetError, match="sample 0 holds a Tensor where attacks need a PIL"):
        BadNets().poison(data)[0]
    with pytest.raises(DatasetError, match="holds a Tensor"):
        LabelFlip().poison(data)


def test_other_refusals(pictures: Make) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(DatasetError, match="no samples"):
        BadNets().poison([])
    with pytest.raises(TypeError, match="map-style"):
        BadNets().poison(Stream())
    with pytest.raises(DatasetError, match="class 4 does not exist: the dataset has 4 classes"):
        BadNets(target=4).poison(pictures())
    with pytest.raises(DatasetError, match="labels are unusable"):
        BadNets().poison([(image, -1) for image in pictures().images])
    with pytest.raises(ValueError, match="qualify"):
        SIG(target=3).poison(Subset(pictures(), [0, 1, 2, 4, 5, 6]))
    assert isinstance(BadNets().poison(pictures()), PoisonedDataset)
