"""Raw image data sets from several kinds of source, for cifar10.py and reproduce.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cgd_wrap.views import find_layout
from cgd_wrap.views.class_names import find_class_names


def read_data(source: str, split: str) -> Any:
    """Raw images and labels of a split, ``"train"`` or ``"test"``.

    Args:
        source: a folder with a parquet file per split, with a subfolder per split that has a
            subfolder of images per class, or with torchvision's CIFAR-10 files; or the name of a
            data set on the hub.
        split: of the data.
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
        data: from :func:`read_data`.
        rows: that are taken; None is all of them.
        side: pixels that each is resized to; None takes that of the first one.
    """

    def __init__(
        self, data: Any, rows: Sequence[int] | None = None, side: int | None = None
    ) -> None:
        layout = find_layout(data)
        self.images, self.targets = [], []
        for index in range(len(data)) if rows is None else rows:
            if index >= len(data):
                continue
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
