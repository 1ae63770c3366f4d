"""The same 12 pictures in 3 classes, in every kind of dataset that users have."""

from __future__ import annotations

import pickle
from collections import OrderedDict, UserDict, namedtuple
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

N, CLASSES = 12, ["ant", "bee", "cat"]
LABELS = [i % 3 for i in range(N)]
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
Pair = namedtuple("Pair", "picture klass")


def pil(index: int) -> Image.Image:
    return Image.fromarray(PIXELS[index])


def normalise(image: Image.Image) -> torch.Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image).float() / 127.5 - 1.0


def augment(image: Image.Image) -> torch.Tensor:
    return normalise(image) + torch.rand(1) + float(np.random.rand())


class Items(Dataset):
    """Gives prepared items."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Careless(Dataset):
    """Calls its transform without looking."""

    def __init__(self, transform=normalise) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return N

    def __getitem__(self, index):
        return {"picture": self.transform(image=pil(index))["image"], "y": LABELS[index]}


class Wrapper:
    """A transform over another dataset; no torch base class."""

    def __init__(self, base, transform) -> None:
        self.base, self.transform = base, transform

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index):
        image, label = self.base[index]
        return (self.transform(image) if self.transform else image), label


def albumentations_like(image):
    return {"image": normalise(image)}


def cifar10(root: Path, transform=normalise, **options):
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    data = PIXELS.transpose(0, 3, 1, 2).reshape(N, -1)
    for part in range(5):
        mine = slice(part, part + 1) if part < 4 else slice(4, N)
        content = {"data": data[mine], "labels": LABELS[mine]}
        (folder / f"data_batch_{part + 1}").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))

    class LocalCIFAR10(CIFAR10):
        meta = {"filename": "batches.meta", "key": "label_names", "md5": None}  # noqa: RUF012

        def _check_integrity(self) -> bool:
            return True

    return LocalCIFAR10(root, transform=transform, **options)


def folder(root: Path) -> Path:
    for index in range(N):
        place = root / CLASSES[LABELS[index]]
        place.mkdir(parents=True, exist_ok=True)
        pil(index).save(place / f"{index:02}.png")
    return root


FOLDER_ORDER = sorted(range(N), key=lambda i: (LABELS[i], i))


def image_folder(root: Path, transform=normalise, **options):
    from torchvision.datasets import ImageFolder

    return ImageFolder(folder(root), transform=transform, **options)


def timm_folder(root: Path, transform=normalise):
    from timm.data import create_dataset

    dataset = create_dataset("", folder(root))
    dataset.transform = transform
    return dataset


def table():
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    return datasets.Dataset.from_dict(
        {"img": [pil(i) for i in range(N)], "label": LABELS},
        features=datasets.Features(features),
    )


def renaming(batch):
    return {"pixel_values": [normalise(i) for i in batch["img"]], "labels": batch["label"]}


def build(kind: str, root: Path):
    """The dataset of one kind, and the order of its samples."""
    order = list(range(N))
    chw = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous()
    pairs = [(pil(i), LABELS[i]) for i in order]
    if kind == "cifar10":
        return cifar10(root), order
    if kind == "image folder":
        return image_folder(root), FOLDER_ORDER
    if kind == "timm":
        return timm_folder(root), FOLDER_ORDER
    if kind == "table":
        return table(), order
    if kind == "table as tensors":
        return table().with_format("torch"), order
    if kind == "table, renamed":
        return table().with_transform(renaming), order
    if kind == "subset of concat":
        both = ConcatDataset([cifar10(root / "a"), timm_folder(root / "b")])
        indices = [20, 3, 11, 12, 0, 23, 5, 6, 7, 8, 9, 10]
        return Subset(both, indices), [i if i < N else FOLDER_ORDER[i - N] for i in indices]
    if kind == "subset of table":
        return Subset(table().with_transform(renaming), order[::-1]), order[::-1]
    if kind == "wrapped subset":
        return Wrapper(Subset(Items(pairs), order[::-1]), normalise), order[::-1]
    if kind == "careless":
        return Careless(albumentations_like), order
    if kind == "tensors":
        return TensorDataset(chw, torch.tensor(LABELS)), order
    rows = {
        "list of tuples": pairs,
        "lists": [list(pair) for pair in pairs],
        "namedtuples": [Pair(*pair) for pair in pairs],
        "dicts": [{"target": y, "img": x} for x, y in pairs],
        "ordered dicts": [OrderedDict(image=x, label=np.int64(y)) for x, y in pairs],
        "user dicts": [UserDict(pixel_values=x, labels=torch.tensor(y)) for x, y in pairs],
        "arrays": [(PIXELS[i], np.int64(LABELS[i])) for i in order],
        "uint8 tensors": [(chw[i], torch.tensor(LABELS[i])) for i in order],
        "unit tensors": [(chw[i].float() / 255, LABELS[i]) for i in order],
        "label first": [(y, x) for x, y in pairs],
        "five fields": [(x, y, 100 + y, 0, 5) for x, y in pairs],
    }[kind]
    return rows if kind == "list of tuples" else Items(rows), order


KINDS = [
    "cifar10", "image folder", "timm", "table", "table as tensors", "table, renamed",
    "subset of concat", "subset of table", "wrapped subset", "careless", "tensors",
    "list of tuples", "lists", "namedtuples", "dicts", "ordered dicts", "user dicts", "arrays",
    "uint8 tensors", "unit tensors", "label first", "five fields",
]  # fmt: skip
