"""The dataset under an attack: raw images and labels, before any transform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch.distributed as dist
from jaxtyping import Int, Int64, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cgd_wrap.data.label_values import as_class_indices, same_label
from cgd_wrap.data.labels import label_column
from cgd_wrap.data.layout import SampleLayout, check_map_style
from cgd_wrap.data.pixels import to_rgb
from cgd_wrap.data.probes import spread
from cgd_wrap.errors import DatasetError


@runtime_checkable
class Images(Protocol):
    """Raw images by position: a list, or :class:`RawSequence`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: int, /) -> Image.Image:
        """Return one of them."""


class RawSequence:
    """The images of a map-style dataset as PIL images, read one by one."""

    def __init__(self, dataset: Any, layout: SampleLayout) -> None:
        self.dataset, self.layout = dataset, layout

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Image.Image:
        return raw_image(self.dataset, self.layout, index)


def raw_image(dataset: Any, layout: SampleLayout, index: int) -> Image.Image:
    """Read one sample's PIL image.

    Raises:
        DatasetError: it is something else, such as a tensor.
    """
    image = layout.image_of(dataset[index])
    if not isinstance(image, Image.Image):
        raise DatasetError(
            f"sample {index} holds a {type(image).__name__} where attacks need a PIL image: a "
            "trigger belongs on the raw image. Take the conversion out of the dataset and pass "
            "it as transform= to .poison or .triggered."
        )
    return image


def pixels(image: Image.Image) -> UInt8[np.ndarray, "h w *channels"]:
    """Grey levels, [h, w] for an 8-bit grey image and [h, w, 3] for every other mode."""
    return np.asarray(image if image.mode in ("L", "RGB") else to_rgb(image))


def raw_labels(dataset: Any, layout: SampleLayout) -> Int64[Tensor, "n"]:
    """Every label, from a column or ``targets`` that a few items confirm, else item by item.

    Unlike :func:`cgd_wrap.data.labels.read_labels` it takes any number of samples and classes:
    nothing is ranked here.

    Raises:
        DatasetError: labels that are no class numbers.
    """
    column: Any = label_column(dataset, layout)
    column = getattr(dataset, "targets", None) if column is None else column
    if hasattr(column, "__len__") and len(column) == len(dataset):
        probes = spread(len(dataset), 8)
        if all(same_label(layout.label_of(dataset[index]), column[index]) for index in probes):
            return as_class_indices(column, None)
    bar = tqdm(range(len(dataset)), desc="reading labels", delay=2.0, disable=quiet())
    return as_class_indices([layout.label_of(dataset[index]) for index in bar], None)


def quiet() -> bool | None:
    """Value of tqdm's ``disable``: no bar on other ranks, nor where no person watches (None)."""
    other_rank = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    return True if other_rank else None


def check_raw(dataset: Any) -> None:
    """Refuse what an attack cannot read raw images from.

    Raises:
        TypeError: not a map-style dataset.
        DatasetError: it is empty or transforms its images; the message says what to do instead.
    """
    check_map_style(dataset)
    for part in _parts(dataset):
        found = _image_transform(part)
        if found is not None:
            raise DatasetError(
                f"{type(part).__name__} has a transform ({found}), and a trigger belongs on the "
                "raw image. Take it out of the dataset (transform=None, or with_format(None) for "
                "a datasets.Dataset) and pass it on: .poison(dataset, transform=...) or "
                ".triggered(dataset, transform=...)."
            )


def check_target(target: int, labels: Int[Tensor, "n"], classes: list[str] | None) -> None:
    """Refuse a target class that the dataset does not have.

    Raises:
        DatasetError: saying which classes there are.
    """
    num_classes = len(classes) if classes else int(labels.max()) + 1
    if target >= num_classes:
        raise DatasetError(
            f"the target class {target} does not exist: the dataset has {num_classes} classes, "
            f"0 to {num_classes - 1}."
        )


def _parts(dataset: Any) -> Iterator[Any]:
    """The dataset and those inside it (Subset, ConcatDataset and what is built alike)."""
    yield dataset
    inner = getattr(dataset, "datasets", None)
    parts = list(inner) if isinstance(inner, (list, tuple)) else [getattr(dataset, "dataset", None)]
    for part in parts:
        if part is not None:
            yield from _parts(part)


def _image_transform(dataset: Any) -> str | None:
    """Name of what the dataset does to its images, None if nothing."""
    transform = getattr(dataset, "transform", None)
    if transform is None:
        transform = getattr(dataset, "transforms", None)
        # torchvision wraps a lone target_transform too; that one touches no image.
        if getattr(transform, "target_transform", None) is not None:
            transform = None
    if transform is not None:
        return str(getattr(transform, "__name__", type(transform).__name__))
    table_format = getattr(dataset, "format", None)
    kind = table_format.get("type") if isinstance(table_format, dict) else None
    return f"format {kind!r}" if kind is not None else None
