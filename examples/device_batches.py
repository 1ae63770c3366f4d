"""Batches of training images that are kept and augmented on a GPU, for reproduce.py.

A small network on a GPU trains faster than worker processes read and augment images one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from image_data import shifted
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import Normalize, PILToTensor

from cgd_wrap.drill import Recipe
from cgd_wrap.drill.training import train_on_batches


class DeviceBatches:
    """Shuffled batches, each image cropped, mirrored and normalised as reproduce.py's loaders do.

    Args:
        data: images and labels, with a `transform` that is left out; or a Subset of such data.
        batch_size: images per batch; images left over at the end of a pass are dropped.
        device: device that holds all images, as bytes.
        normalise: normalisation of pixels in [0, 1].
        seed: seed of order, crops and mirroring.
        num_workers: processes that read the images, once.
    """

    def __init__(
        self, data: Any, batch_size: int, device: torch.device, normalise: Normalize, *,
        seed: int, num_workers: int = 0,
    ) -> None:  # fmt: skip
        parts = list(DataLoader(untransformed(data), 500, num_workers=num_workers))
        pixels = torch.cat([images for images, _ in parts]).to(device)
        self.margin = pixels.shape[-1] // 8
        padded = torch.nn.functional.pad(pixels, (self.margin,) * 4)
        self.padded = padded.permute(0, 2, 3, 1).contiguous()
        self.labels = torch.cat([labels for _, labels in parts]).to(device)
        self.batch_size = min(batch_size, len(self.labels))
        self.generator = torch.Generator(device).manual_seed(seed)
        self.normalise = normalise

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(
            len(self.labels), generator=self.generator, device=self.labels.device
        )
        for index in order[: len(self) * self.batch_size].split(self.batch_size):
            images = shifted(self.padded, index, self.margin, flip=True, generator=self.generator)
            yield self.normalise(images), self.labels[index]


def untransformed(data: Any) -> Any:
    """Copy a data set so that it gives its images as bytes, [3, H, W], without its transform."""
    if isinstance(data, Subset):
        return Subset(untransformed(data.dataset), data.indices)
    raw = copy.copy(data)
    raw.transform = PILToTensor()
    return raw


def training_on(
    device: torch.device, recipe: Recipe, normalise: Normalize, *,
    seed: int, num_workers: int, progress: bool,
) -> Callable[[nn.Module, Any], None]:  # fmt: skip
    """Make a `train_model` for `Experiment`: it trains by the recipe, from the device."""

    def train(model: nn.Module, data: Any) -> None:
        batches = DeviceBatches(
            data, recipe.batch_size, device, normalise, seed=seed, num_workers=num_workers
        )
        train_on_batches(model, batches, recipe, seed=seed, title="on the GPU", progress=progress)

    return train
