"""Small data sets of random pictures for the tests of the attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


def make_picture(seed: int, width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3)
    grey_levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(grey_levels).convert(mode)


class Pictures(Dataset[Any]):
    """Random pictures in memory with labels 0, 1, ... in turn; counts the reads."""

    def __init__(self, size: int = 60, num_classes: int = 4) -> None:
        self.images = [make_picture(index) for index in range(size)]
        self.targets = [index % num_classes for index in range(size)]
        self.classes = [f"class {index}" for index in range(num_classes)]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.transform: Any = None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        image = self.images[index]
        return (self.transform(image) if self.transform else image), self.targets[index]
