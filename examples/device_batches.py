"""Batches of training images that lie on a GPU, for reproduce.py.

A small network on a GPU learns images faster than processes read and augment them one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import Normalize, PILToTensor

from cgd_wrap.drill import Recipe
from cgd_wrap.drill.training import train_on_batches


class DeviceBatches:
    """Shuffled batches, each image cropped, mirrored and normalised as reproduce.py's loaders do.

    Args:
        data: images and labels, with a `transform` that is left out, or a Subset of such.
        batch_size: images a batch; what is left over at the end of a pass is dropped.
        device: that holds all images, as bytes.
        normalise: of pixels in [0, 1].
        seed: of order, crops and mirroring.
        num_workers: processes that read the images, once.
    """

    def __init__(
        self, data: Any, batch_size: int, device: torch.device, normalise: Normalize, *,
        seed: int, num_workers: int = 0,
    ) -> None:  # fmt: skip
        parts = list(DataLoader(untransformed(data), 500, num_workers=num_workers))
        pixels = torch.cat([images for images, _ in parts]).to(device)
        self.side = pixels.shape[-1]
        self.margin = self.side // 8
        padded = torch.nn.functional.pad(pixels, (self.margin,) * 4)
        self.padded = padded.permute(0, 2, 3, 1).contiguous()
        self.labels = torch.cat([labels for _, labels in parts]).to(device)
        self.batch_size = min(batch_size, len(self.labels))
        self.generator = torch.Generator(device).manual_seed(seed)
        self.mean = 255 * torch.tensor(normalise.mean, device=device)
        self.std = 255 * torch.tensor(normalise.std, device=device)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = {"generator": self.generator, "device": self.labels.device}
        order = torch.randperm(len(self.labels), **random)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.augmented(rows, random), self.labels[rows]

    def augmented(self, rows: Tensor, random: dict[str, Any]) -> Tensor:
        """The images of these rows, [B, 3, H, W], channels last in memory."""
        shape = (2, len(rows), 1)
        offsets = torch.randint(0, 2 * self.margin + 1, shape, **random)
        down, across = torch.arange(self.side, device=rows.device) + offsets
        mirrored = torch.rand(len(rows), 1, **random) < 0.5
        across = torch.where(mirrored, across.flip(1), across)
        crops = self.padded[rows[:, None, None], down[:, :, None], across[:, None, :]]
        return ((crops - self.mean) / self.std).permute(0, 3, 1, 2)


def untransformed(data: Any) -> Any:
    """The data set with its images as bytes, [3, H, W]."""
    if isinstance(data, Subset):
        return Subset(untransformed(data.dataset), data.indices)
    raw = copy.copy(data)
    raw.transform = PILToTensor()
    return raw


def training_on(
    device: torch.device, recipe: Recipe, normalise: Normalize, *,
    seed: int, num_workers: int, progress: bool,
) -> Callable[[nn.Module, Any], None]:  # fmt: skip
    """What `Experiment` takes as `train_model`: it trains by the recipe, from the device."""

    def train(model: nn.Module, data: Any) -> None:
        batches = DeviceBatches(
            data, recipe.batch_size, device, normalise, seed=seed, num_workers=num_workers
        )
        train_on_batches(model, batches, recipe, seed=seed, title="on the GPU", progress=progress)

    return train
