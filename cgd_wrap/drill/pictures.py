"""A guarded dataset's raw images as an attack wants them, and tensors as its model wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data import ModelInputs, RawImages


class Pictures(Dataset[Any]):
    """Some samples of a dataset as raw ``(image, label)`` tuples.

    Args:
        raw: gives RGB images by index.
        labels: of all of them, int64 [N].
        classes: names, in the order of the labels.
        indices: the samples that are taken, ascending.
    """

    def __init__(
        self,
        raw: RawImages,
        labels: Int[Tensor, "n"],
        classes: Sequence[str],
        indices: Int[Tensor, "m"],
    ) -> None:
        self.raw, self.indices, self.classes = raw, indices.tolist(), list(classes)
        self.targets: list[int] = labels[indices].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex) -> tuple[Image.Image, int]:
        position = range(len(self))[index]
        return self.raw[self.indices[position]], self.targets[position]


@dataclass(frozen=True)
class ToInput:
    """A picture as the input of a freshly trained model, see :class:`ModelInputs`.

    Args:
        size: height and width in pixels.
        channels: 3, or 1 for grey.
        moved_by: largest random move, in sixteenths of each side; 0 gives the same tensor always.
    """

    size: tuple[int, int]
    channels: int = 3
    moved_by: int = 0

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Convert one picture."""
        values = ModelInputs([image], self.size, self.channels)[0]
        return moved(values, *(self.moved_by * side // 16 for side in self.size))


def moved(image: Float[Tensor, "c h w"], rows: int, columns: int) -> Float[Tensor, "c h w"]:
    """Move an image at random, by up to so many pixels each way; its edge is repeated."""
    if not (rows or columns):
        return image
    height, width = image.shape[1:]
    padded = F.pad(image[None], (columns, columns, rows, rows), mode="replicate")[0]
    down = int(torch.randint(0, 2 * rows + 1, ()))
    right = int(torch.randint(0, 2 * columns + 1, ()))
    return padded[:, down : down + height, right : right + width]
