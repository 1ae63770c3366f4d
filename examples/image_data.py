"""Reading raw images from several kinds of source, and shifting batches of images at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cgd_wrap.data import find_layout
from cgd_wrap.data.class_names import find_class_names


def read_data(source: str, split: str) -> Any:
    """Read raw images and labels of one split of a data set.

    Args:
        source: a folder with a parquet file per split, with a subfolder per split that has a
            subfolder of images per class, or with torchvision's CIFAR-10 files; or the name of a
            data set on the hub.
        split: name of the split, ``"train"`` or ``"test"``.
    """
    folder = Path(source)
    if (folder / f"{split}.parquet").is_file():
        from datasets import Dataset

        return Dataset.from_parquet(str(folder / f"{split}.parquet"))
    if (folder / split).is_dir():
        from torchvision.datasets import ImageFolder

        return ImageFolder(str(folder / split))
    if folder.is_dir():
        from torchvision.datasets import CIFAR10

        return CIFAR10(source, train=split == "train")
    from datasets import load_dataset

    return load_dataset(source, split=split)


class Pictures(torch.utils.data.Dataset):
    """Images and labels of a data set, decoded once and kept in memory.

    Args:
        data: data set of :func:`read_data`.
        rows: indices of the images that are taken. None: all images.
        side: height and width that each image is resized to, in pixels. None: the shorter side of
            the first image.
    """

    def __init__(
        self, data: Any, rows: Sequence[int] | None = None, side: int | None = None
    ) -> None:
        layout = find_layout(data)
        self.images, self.targets = [], []
        there = range(len(data))
        for index in there if rows is None else [row for row in rows if row in there]:
            sample = data[index]
            image = layout.image_of(sample).convert("RGB")
            side = side or min(image.size)
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            self.images.append(np.array(image))
            self.targets.append(int(layout.label_of(sample)))
        self.side = side
        self.classes = find_class_names(data)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.targets[index]


def shifted(
    padded: Tensor, index: Tensor, margin: int, *, flip: bool, generator: torch.Generator
) -> Tensor:
    """Take the images of a batch, and shift and perhaps mirror each image at random.

    Args:
        padded: images [N, H, W, 3] uint8 with a margin on all sides.
        index: indices of the batch's images, [B], on the device of the images.
        margin: largest shift in pixels.
        flip: mirror about half of the images.
        generator: random generator on the device of the images.

    Returns:
        [B, 3, H - 2 margin, W - 2 margin] in [0, 1], channels last in memory.
    """
    size, n, device = padded.shape[1] - 2 * margin, len(index), padded.device
    offsets = torch.randint(0, 2 * margin + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = torch.arange(size, device=device) + offsets
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    crops = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).float() / 255
