"""Decoding JPEG files at a reduced scale, where a dataset's images are exactly its files."""

from __future__ import annotations

import copy
import os
from typing import Any

from PIL import Image, ImageOps

from cgd_wrap.data.pixels import open_encoded
from cgd_wrap.data.sources import ReaderImages, TableImages, getitem_home, rebuilt
from cgd_wrap.data.transforms import passthrough

SCALES = (8, 4, 2)  # by which libjpeg can divide a size while it decodes
ORIENTATION = 0x0112  # tag of EXIF


def drafted(dataset: Any, edge: int) -> Any:
    """Copy a dataset of raw images so that large JPEG files are decoded at a reduced scale.

    Reduced are images that the dataset gives as they are in its files: of torchvision's folders, of
    tables and of timm's readers. Where code of the user's gets to see the image first, such as an
    attack that puts a trigger at some place, the image stays whole.

    Args:
        dataset: a dataset without image transforms.
        edge: pixels that the shorter edge keeps at least.
    """

    def change(leaf: Any, direct: bool) -> Any:
        if not direct:
            return leaf
        if isinstance(leaf, TableImages):
            return _DraftedTable(leaf, edge)
        if isinstance(leaf, ReaderImages):
            return _DraftedReader(leaf, edge)
        return _drafted_folder(leaf, edge)

    return rebuilt(dataset, change)


def draft(image: Image.Image, edge: int) -> Image.Image:
    """Have a JPEG decoded at the smallest scale that leaves the shorter edge so many pixels.

    Args:
        image: an image that was opened and isn't decoded yet; of other formats, nothing changes.
        edge: pixels.

    Returns:
        The image itself.
    """
    if image.format == "JPEG":
        width, height = image.size
        scale = next((one for one in SCALES if min(width, height) >= one * edge), 1)
        image.draft(image.mode, (width // scale, height // scale))
    return image


def _drafted_folder(leaf: Any, edge: int) -> Any:
    loader = getattr(leaf, "loader", None)
    home = "torchvision.datasets.folder"
    is_pillows = getattr(loader, "__module__", "") == home  # its default loader, or its Pillow one
    is_plain = getattr(leaf, "transform", None) in (None, passthrough)
    if not (is_pillows and is_plain and getitem_home(leaf) == home):
        return leaf
    clone = copy.copy(leaf)
    clone.loader = _DraftLoader(edge)
    return clone


class _DraftLoader:
    """Reads an image as torchvision's ``pil_loader`` does, at a reduced scale."""

    def __init__(self, edge: int) -> None:
        self.edge = edge

    def __call__(self, path: str) -> Image.Image:
        with open(path, "rb") as file:
            return draft(Image.open(file), self.edge).convert("RGB")


class _DraftedTable(TableImages):
    """A table's images, decoded as ``datasets`` does it, at a reduced scale."""

    def __init__(self, images: TableImages, edge: int) -> None:
        vars(self).update(vars(images))
        self.edge, self.feature = edge, copy.copy(self.table.features[self.column])
        if type(self.feature).__name__ == "Image" and self.feature.decode:
            undecoded = copy.copy(self.feature)
            undecoded.decode = False
            self.table = self.table.cast_column(self.column, undecoded)

    def __getitem__(self, index: int) -> dict[int | str, Any]:
        value = self.table[int(index)][self.column]
        if getattr(self.feature, "decode", False) and value is not None:
            value = self._decoded(value)
        return {self.image: value}

    def _decoded(self, value: dict[str, Any]) -> Any:
        if value["bytes"] is None and not os.path.isfile(value["path"] or ""):  # in the network
            return self.feature.decode_example(value)
        with open_encoded(value) as opened:
            image = draft(opened, self.edge)
            image.load()
            if image.getexif().get(ORIENTATION) is not None:
                image = ImageOps.exif_transpose(image)
        mode = self.feature.mode
        return image.convert(mode) if mode and mode != image.mode else image


class _DraftedReader(ReaderImages):
    """A timm dataset's images, decoded at a reduced scale."""

    def __init__(self, images: ReaderImages, edge: int) -> None:
        vars(self).update(vars(images))
        self.edge = edge

    def opened(self, source: Any) -> Image.Image:
        """Open an image that will be decoded at a reduced scale."""
        return draft(super().opened(source), self.edge)
