"""Reading raw images and labels, before any transform, from the data set under an attack."""

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
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Image.Image:
        """Return the image at a position."""


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
        DatasetError: the sample's image is something else, such as a tensor.
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
    """Grey levels of an image: [h, w] for 8-bit grey and [h, w, 3] for every other mode."""
    return np.asarray(image if image.mode in ("L", "RGB") else to_rgb(image))


def raw_labels(dataset: Any, layout: SampleLayout) -> Int64[Tensor, "n"]:
    """Read every label: from a column or ``targets`` that a few items confirm, else from the items.

    Any number of samples and classes is allowed, unlike in
    :func:`cgd_wrap.data.labels.read_labels`: attacks rank nothing by the labels.

    Raises:
        DatasetError: some labels are no class numbers.
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
    """Value of tqdm's ``disable``: True on all processes but the first, else None.

    None draws a bar on a terminal only.
    """
    other_rank = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    return True if other_rank else None


def check_raw(dataset: Any) -> None:
    """Refuse a data set from which an attack cannot read raw images.

    Raises:
        TypeError: the data set is not map-style.
        DatasetError: the data set is empty or transforms its images; the message says what to do
            instead.
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
        DatasetError: the class doesn't exist; the message says which classes do.
    """
    num_classes = len(classes) if classes else int(labels.max()) + 1
    if target >= num_classes:
        raise DatasetError(
            f"the target class {target} does not exist: the dataset has {num_classes} classes, "
            f"0 to {num_classes - 1}."
        )


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield a data set and all data sets that it wraps (as Subset and ConcatDataset do)."""
    yield dataset
    inner = getattr(dataset, "datasets", None)
    parts = list(inner) if isinstance(inner, (list, tuple)) else [getattr(dataset, "dataset", None)]
    for part in parts:
        if part is not None:
            yield from _parts(part)


def _image_transform(dataset: Any) -> str | None:
    """Name of the transform that a data set applies to its images; None if there is none."""
    transform = getattr(dataset, "transform", None)
    if transform is None:
        transform = getattr(dataset, "transforms", None)
        # torchvision also wraps a lone target_transform, which touches no image.
        if getattr(transform, "target_transform", None) is not None:
            transform = None
    if transform is not None:
        return str(getattr(transform, "__name__", type(transform).__name__))
    table_format = getattr(dataset, "format", None)
    kind = table_format.get("type") if isinstance(table_format, dict) else None
    return f"format {kind!r}" if kind is not None else None
