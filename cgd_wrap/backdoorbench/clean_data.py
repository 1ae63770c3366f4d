"""Reading the clean data sets in BackdoorBench's ``data`` folder, in BackdoorBench's own order."""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.backdoorbench.safe_reading import load_pickled_arrays
from cgd_wrap.data.known_classes import known_classes
from cgd_wrap.data.label_values import as_class_indices

CIFAR = {  # data set -> folder, files of the two parts, key of the labels
    "cifar10": (
        "cifar-10-batches-py",
        (tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)),
        "labels",
    ),
    "cifar100": ("cifar-100-python", (("train",), ("test",)), "fine_labels"),
}


class CleanImages(Dataset[tuple[Any, int]]):
    """The images of a clean data set: items are ``(image, label)``.

    Args:
        pictures: pixels uint8 [N, H, W, 3], or the path of each image.
        targets: label of each image.
        classes: names of the classes, in the order of the labels.
        transform: PIL image -> anything.
    """

    def __init__(
        self,
        pictures: np.ndarray | Sequence[str],
        targets: Sequence[int],
        classes: Sequence[str],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.pictures, self.targets, self.classes = pictures, list(targets), list(classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self.pictures[index]
        image = open_rgb(picture) if isinstance(picture, str) else Image.fromarray(picture)
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> CleanImages:
        """Copy the data set with another transform."""
        changed = copy.copy(self)
        changed.transform = transform
        return changed


def open_rgb(path: str) -> Image.Image:
    """Read an image file and convert it to RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def clean_images(data_set: str, folder: Path) -> tuple[CleanImages, CleanImages]:
    """Read the training part and the test part of a clean data set.

    Args:
        data_set: ``"cifar10"``, ``"cifar100"``, ``"gtsrb"`` or ``"tiny"``.
        folder: folder of the data set, such as ``data/cifar10``.

    Raises:
        FileNotFoundError: files are missing.
        UnsafeFileError: a pickle of CIFAR holds more than arrays.
        DatasetError: some labels are no classes of the data set.
        ValueError: ``data_set`` is none of the four.
    """
    readers: dict[str, Callable[[str, Path, int], tuple[Any, list[int]]]]
    readers = {"cifar10": _cifar, "cifar100": _cifar, "gtsrb": _gtsrb, "tiny": _tiny}
    if data_set not in readers:
        raise ValueError(
            f"the data set {data_set!r} can't be read here, only {sorted(readers)}. With datasets "
            "of (PIL image, label) of your own, use BackdoorSamples and CGDGuard"
        )
    classes = known_classes(data_set).names
    parts = []
    for part in range(2):
        pictures, labels = readers[data_set](data_set, folder, part)
        targets = as_class_indices(labels, len(classes)).tolist()
        parts.append(CleanImages(pictures, targets, classes))
    return parts[0], parts[1]


def _cifar(data_set: str, folder: Path, part: int) -> tuple[np.ndarray, list[int]]:
    name, parts, key = CIFAR[data_set]
    batches = [load_pickled_arrays(folder / name / file) for file in parts[part]]
    pixels = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
    labels = [label for batch in batches for label in batch[key]]
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _gtsrb(data_set: str, folder: Path, part: int) -> tuple[list[str], list[int]]:
    """Read paths and labels of GTSRB: a table in each class folder, or one table for the test."""
    tables = [folder / "Test" / "GT-final_test.csv"]
    if part == 0:
        tables = [folder / "Train" / f"{k:05d}" / f"GT-{k:05d}.csv" for k in range(43)]
    paths, labels = [], []
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter=";"):
                paths.append(str(table.parent / Path(row["Filename"]).name))
                labels.append(int(row["ClassId"]))
    return paths, labels


def _tiny(data_set: str, folder: Path, part: int) -> tuple[list[str], list[int]]:
    """Read paths and labels of Tiny-ImageNet: a folder per WordNet id; the test is ``val``."""
    root = folder / "tiny-imagenet-200" / ("train", "val")[part]
    paths, labels = [], []
    for label, wnid in enumerate(known_classes(data_set).keys):
        if not (root / wnid).is_dir():
            raise FileNotFoundError(
                f"no folder {str(root / wnid)!r}: Tiny-ImageNet needs one per class, in val, too, "
                "as BackdoorBench's own download arranges it"
            )
        for above, _, files in sorted(os.walk(root / wnid)):
            pictures = [name for name in sorted(files) if name.lower().endswith((".jpeg", ".jpg"))]
            paths += [os.path.join(above, name) for name in pictures]
            labels += [label] * len(pictures)
    return paths, labels
