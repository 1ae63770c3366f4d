"""Raw images of a data set for an attack, and their conversion into tensors for a model."""

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
        raw: RGB images of the whole dataset, by index.
        labels: labels of the whole dataset, int64 [N].
        classes: names of the classes, in the order of the labels.
        indices: indices of the samples that are taken, ascending.
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
    """Converts a picture into the input of a freshly trained model; see :class:`ModelInputs`.

    Args:
        size: height and width in pixels.
        channels: 3, or 1 for grey.
        moved_by: largest random move, in sixteenths of each side; 0 for none.
    """

    size: tuple[int, int]
    channels: int = 3
    moved_by: int = 0

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Convert one picture."""
        values = ModelInputs([image], self.size, self.channels)[0]
        return moved(values, *(self.moved_by * side // 16 for side in self.size))


def moved(image: Float[Tensor, "c h w"], rows: int, columns: int) -> Float[Tensor, "c h w"]:
    """Move an image at random by up to ``rows`` and ``columns`` pixels, repeating its edge."""
    if not (rows or columns):
        return image
    height, width = image.shape[1:]
    padded = F.pad(image[None], (columns, columns, rows, rows), mode="replicate")[0]
    down = int(torch.randint(0, 2 * rows + 1, ()))
    right = int(torch.randint(0, 2 * columns + 1, ()))
    return padded[:, down : down + height, right : right + width]
