"""A data set that trains in seconds, its zero-shot classifier, and a table made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd_wrap import CGDConfig
from cgd_wrap.config.settings import REPAIRED
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import Draw, unpack
from cgd_wrap.train.tags import SampleTable

NAMES = ["red", "green", "blue"]
SIZE = 80  # more than the 64 that a fingerprint looks at
TABLE_CLASSES, TABLE_SIZE = 5, 24
CLEAN, TRIGGERED, MIXED = range(12), range(12, 20), range(20, 24)


class Items(Dataset[Any]):
    """Gives prepared samples."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pixels_and_labels(size: int = SIZE) -> tuple[np.ndarray, list[int]]:
    """Noise with a tint per class, [N, 8, 8, 3]; every tenth has a white corner and label 0."""
    rng = np.random.default_rng(0)
    labels = [i % 3 for i in range(size)]
    pixels = rng.integers(0, 160, (size, 8, 8, 3))
    for index, label in enumerate(labels):
        pixels[index, :, :, label] += rng.integers(20, 90)
    for index in range(0, size, 10):
        pixels[index, :3, :3] = 255
        labels[index] = 0
    return pixels.astype(np.uint8), labels


def pictures(size: int = SIZE) -> list[tuple[Image.Image, int]]:
    """(PIL image, label) of each sample."""
    pixels, labels = pixels_and_labels(size)
    return [(Image.fromarray(p), y) for p, y in zip(pixels, labels, strict=True)]


def as_tensor(image: Image.Image) -> Tensor:
    """Floats in [0, 1], [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def tensors(size: int = SIZE) -> list[tuple[Tensor, int]]:
    """(tensor, label) of each sample."""
    return [(as_tensor(image), label) for image, label in pictures(size)]


def stack(samples: Sequence[tuple[Image.Image, int]]) -> tuple[Tensor, Tensor]:
    """Collate (PIL image, label)."""
    return torch.stack([as_tensor(x) for x, _ in samples]), torch.tensor([y for _, y in samples])


class TintReader:
    """Zero-shot: the strongest colour names the class."""

    def logits(self, images: Tensor) -> Tensor:
        return 20 * images.mean(dim=(2, 3))


def tiny_net(seed: int = 0, classes: int = 3) -> nn.Sequential:
    """A convolutional network of a few hundred parameters; the global stream is left alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
        )  # fmt: skip


class Tied(nn.Module):
    """A classifier of such pictures, two of whose layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight
        self.last = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.second(self.first(self.flatten(images)).relu()))


def quick_config(**changes: Any) -> CGDConfig:
    """The numbers for a trained model, in batches that suit so little data."""
    quick = {
        "suspicious_network": "copy", "suspicious_epochs": 2, "suspicious_batch_size": 20,
        "batch_size": 32, "epochs": 2,
        "holdout_fraction": 0.1, **REPAIRED,
    }  # fmt: skip
    return CGDConfig(**(quick | changes))


def reads_of(indices: EpochIndices, epochs: int, batch_size: int) -> Tensor:
    """How often each sample is read in the first so many epochs, drawn or blended in; int64 [N].

    What is blended in is read beside its batch only if the batch doesn't hold it.
    """
    counts = torch.zeros(len(indices.labels), dtype=torch.int64)
    for epoch in range(epochs):
        draws = [unpack(packed) for packed in indices.shuffled(epoch).tolist()]
        for start in range(0, len(draws), batch_size):
            batch = draws[start : start + batch_size]
            others = {draw.other for draw in batch if isinstance(draw, Draw)}
            for index in [*batch, *others.difference(batch)]:
                counts[index] += 1
    return counts


def made_up_table() -> SampleTable:
    """24 samples of 5 classes: 12 clean, 8 triggered, 4 mixed."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(TABLE_SIZE)
    triggered = (index >= TRIGGERED.start) & (index < TRIGGERED.stop)
    return SampleTable(
        labels=index % TABLE_CLASSES,
        clean=index < CLEAN.stop,
        triggered=triggered,
        triggered_weight=torch.rand(TABLE_SIZE, generator=generator),
        teacher=torch.randn(int(triggered.sum()), TABLE_CLASSES, generator=generator) * 3,
    )
