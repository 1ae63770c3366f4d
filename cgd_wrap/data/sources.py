"""Looking into a dataset's wrappers, and copying the dataset without its image transforms.

Known types (tables of ``datasets``, timm's dataset, subsets) are recognised by the module that
defines them, so that no optional library is imported here.
"""

from __future__ import annotations

import bisect
import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from cgd_wrap.data.transforms import (
    SizeChecked,
    Watched,
    class_transforms,
    is_image_transform,
    may_be_image_transform,
)
from cgd_wrap.errors import DatasetError

CHILD_ATTRIBUTES = ("dataset", "base", "base_dataset", "data", "ds", "subset", "datasets")


def is_table(dataset: object) -> bool:
    """Whether a dataset is a ``datasets.Dataset``."""
    return any(kind.__module__ == "datasets.arrow_dataset" for kind in type(dataset).__mro__)


def is_timm(dataset: object) -> bool:
    """Whether a dataset is timm's map-style ``ImageDataset``, which skips unreadable files."""
    return hasattr(dataset, "reader") and getitem_home(dataset) == "timm.data.dataset"


def is_subset(dataset: object) -> bool:
    """Whether a dataset's items are exactly ``dataset.dataset[i]`` for i of ``dataset.indices``."""
    return getattr(type(dataset), "__getitem__", None) is Subset.__getitem__


def is_concat(dataset: object) -> bool:
    """Whether a dataset's items are exactly the items of ``dataset.datasets``, in their order."""
    return getattr(type(dataset), "__getitem__", None) is ConcatDataset.__getitem__


def getitem_home(dataset: object) -> str:
    """Name of the module that defines the dataset's ``__getitem__``."""
    home: str = getattr(getattr(type(dataset), "__getitem__", None), "__module__", "")
    return home


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """Find the innermost dataset that holds sample ``index``, and the sample's index there."""
    index = int(index) + (len(dataset) if index < 0 else 0)
    if is_subset(dataset):
        return locate(dataset.dataset, int(dataset.indices[index]))
    if is_concat(dataset):
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return locate(dataset.datasets[part], index - before)
    return dataset, index


def readable(dataset: Any) -> Any:
    """Copy a dataset so that an unreadable file raises an error instead of being skipped."""
    return rebuilt(dataset, lambda leaf, direct: ReaderImages(leaf) if is_timm(leaf) else leaf)


def checked(dataset: Any) -> Any:
    """Copy a dataset as :func:`readable` does, with transforms that refuse bombs.

    An image that a resize would blow up beyond all bounds is an error before any transform that
    the dataset holds gets to see the image.
    """

    def change(leaf: Any, direct: bool) -> Any:
        if is_timm(leaf):
            transform = leaf.transform and SizeChecked(leaf.transform)
            return ReaderImages(leaf, transform=transform)
        if is_table(leaf) and leaf.format["type"] == "custom":
            transform = SizeChecked(leaf.format["format_kwargs"]["transform"])
            return leaf.with_transform(transform, columns=leaf.format["columns"])
        return leaf

    def replace(name: str, value: Any) -> Any:
        known = is_image_transform(name, value) and callable(value)
        return SizeChecked(value) if known else value

    return rebuilt(dataset, change, replace)


def untransformed(
    dataset: Any, image: int | str, fill: object = None, others: Collection[str] = ()
) -> Any:
    """Copy a dataset without its image transforms; the dataset itself is left alone.

    Args:
        dataset: any map-style dataset; wrappers are followed down to the innermost dataset.
        image: where an item holds its image.
        fill: replaces each transform: None, or
            :func:`~cgd_wrap.data.transforms.passthrough` for code that calls its transform
            without checking for None.
        others: further attributes that are transforms, which their names don't say.
    """

    def change(leaf: Any, direct: bool) -> Any:
        if isinstance(leaf, ReaderImages):
            return ReaderImages(leaf.dataset, transform=None)
        if is_timm(leaf):
            return ReaderImages(leaf, transform=None)
        if is_table(leaf):
            return TableImages(leaf, image) if direct else leaf.with_format(None)
        return leaf

    def replace(name: str, value: Any) -> Any:
        stripped = name in others or is_image_transform(name, value)
        return fill if stripped and value is not None else value

    return rebuilt(dataset, change, replace)


def watched(dataset: Any, seen: defaultdict[str, list[bool]]) -> Any:
    """Copy a dataset so that each callable it holds notes under its name what it makes of images.

    Args:
        dataset: any map-style dataset.
        seen: gets an entry for each call on an image: whether the result is an image of floats.
    """

    def replace(name: str, value: Any) -> Any:
        return Watched(value, name, seen) if may_be_image_transform(name, value) else value

    return rebuilt(dataset, lambda leaf, direct: leaf, replace)


def image_column(table: Any, image: int | str) -> str:
    """Name the column of a ``datasets.Dataset`` from which an item's ``image`` is made."""
    columns = list(table.column_names)
    pictures = [name for name in columns if type(table.features[name]).__name__ == "Image"]
    if isinstance(image, str) and image in columns:
        return image
    if len(pictures) == 1:
        return str(pictures[0])
    raise DatasetError(
        f"which column of {columns} holds the raw images of {image!r}? "
        f"Image columns: {pictures}; pass clip_dataset= with one of them"
    )


class TableImages(Dataset[Any]):
    """The untransformed images of a ``datasets.Dataset``, under the key of the user's items."""

    def __init__(self, table: Any, image: int | str) -> None:
        self.column, self.image = image_column(table, image), image
        is_picture = type(table.features[self.column]).__name__ == "Image"
        self.table = table.with_format(None if is_picture else "numpy").select_columns(
            [self.column]
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[int | str, Any]:
        return {self.image: self.table[int(index)][self.column]}


class ReaderImages(Dataset[Any]):
    """A timm dataset that raises an error for an unreadable file.

    timm's own ``__getitem__`` logs a warning and returns the next sample: scores and labels
    would then belong to different samples.
    """

    def __init__(self, dataset: Any, **replaced: Any) -> None:
        self.dataset = copy.copy(dataset)
        vars(self.dataset).update(replaced)

    def __len__(self) -> int:
        return len(self.dataset.reader)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        dataset = self.dataset
        source, target, *features = dataset.reader[int(index)]
        image = source.read() if dataset.load_bytes else self.decoded(source)
        mode = None if dataset.load_bytes else getattr(dataset, "input_img_mode", "RGB")
        if mode and dataset.transform is not None:
            image = image.convert(mode)
        if dataset.transform is not None:
            image = dataset.transform(image)
        if target is None:
            target = -1
        elif dataset.target_transform is not None:
            target = dataset.target_transform(target)
        return (image, target, *(features if dataset.additional_features else ()))

    def decoded(self, source: Any) -> Image.Image:
        """Decode the image in an open file, and close the file, also if it holds no image."""
        if isinstance(source, Image.Image):
            return source
        with source:
            image = self.opened(source)
            image.load()
        return image

    def opened(self, source: Any) -> Image.Image:
        """Open an image without decoding it."""
        return Image.open(source)


def rebuilt(
    dataset: Any,
    change: Callable[[Any, bool], Any],
    replace: Callable[[str, Any], Any] = lambda name, value: value,
    *,
    direct: bool = True,
    above: frozenset[int] = frozenset(),
) -> Any:
    """Copy a dataset and the wrappers around the parts that change; the rest is shared.

    Args:
        dataset: any dataset.
        change: gets each innermost dataset, and whether the items are exactly its own.
        replace: gets name and value of each attribute that is no dataset.
        direct: whether the items of the outermost dataset are exactly this dataset's.
        above: the datasets around this one.
    """
    if id(dataset) in above:
        return dataset
    replaced = change(dataset, direct)
    attributes = getattr(dataset, "__dict__", None)
    done = replaced is not dataset or is_table(dataset) or isinstance(dataset, ReaderImages)
    if done or not isinstance(attributes, dict):
        return replaced
    below = direct and (is_subset(dataset) or is_concat(dataset))
    path = above | {id(dataset)}

    def follow(child: Any) -> Any:
        return rebuilt(child, change, replace, direct=below, above=path)

    updates: dict[str, Any] = {}
    for name, value in attributes.items():
        if _is_child(name, value):
            new = follow(value)
        elif isinstance(value, (list, tuple)) and value and _is_child(name, value[0]):
            children = [follow(child) for child in value]
            same = all(a is b for a, b in zip(children, value, strict=True))
            new = value if same else children
        else:
            new = replace(name, value)
        if new is not value:
            updates[name] = new
    for name in class_transforms(dataset, attributes):
        value = getattr(dataset, name)
        if (new := replace(name, value)) is not value:
            updates[name] = new
    if not updates:
        return dataset
    clone = copy.copy(dataset)
    vars(clone).update(updates)  # not by setattr: a property's setter may change the original
    return clone


def _is_child(name: str, value: object) -> bool:
    if isinstance(value, Dataset) or is_table(value):
        return True
    if name not in CHILD_ATTRIBUTES or isinstance(value, (Mapping, torch.nn.Module)):
        return False
    return hasattr(type(value), "__getitem__") and hasattr(value, "__dict__")


def children_of(dataset: object) -> list[Any]:
    """The datasets that a dataset holds in its attributes, alone or in a list."""
    found = list[Any]()
    for name, value in getattr(dataset, "__dict__", {}).items():
        each = value if isinstance(value, (list, tuple)) and value else [value]
        found += each if _is_child(name, each[0]) else []
    return found


def held(dataset: object, name: str) -> Any:
    """Read an attribute of a dataset or its class; attributes that it forwards give None."""
    if inspect.getattr_static(dataset, name, None) is None:
        return None
    return getattr(dataset, name, None)
