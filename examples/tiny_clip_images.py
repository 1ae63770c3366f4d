"""Loading the pictures that train_tiny_clip.py learns from, and varying them at random."""

from __future__ import annotations

from dataclasses import dataclass

import image_data
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cgd_wrap.attacks import Attack
from cgd_wrap.demo.shapes import ShapesDataset

PROMPT = "a photo of a {}"
PADDING = 4  # pixels that a picture may be shifted by


@dataclass(frozen=True)
class Pictures:
    """Images [N, H, W, 3] uint8, labels [N], class names; a caption for each image, or None."""

    pixels: Tensor
    labels: Tensor
    classes: list[str]
    captions: list[str] | None = None


def load_shapes(size: int, seed: int) -> Pictures:
    data = ShapesDataset(size, seed)
    pixels = torch.from_numpy(np.stack([np.asarray(data[i][0]) for i in range(size)]))
    captions = [data.caption(i) for i in range(size)]
    return Pictures(pixels, torch.tensor(data.targets), data.classes, captions)


def load_pictures(source: str, split: str, rows: range | None = None) -> Pictures:
    """Load a split of any source of ``image_data.read_data``; images get the first one's size."""
    data = image_data.Pictures(image_data.read_data(source, split), rows)
    return Pictures(
        torch.from_numpy(np.stack(data.images)), torch.tensor(data.targets), data.classes
    )


def backdoored(pictures: Pictures, attack: Attack, share: float, seed: int) -> Pictures:
    """Copy pictures, and give a share of them the attack's trigger, target label and caption."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(pictures.labels), generator=generator) < share
    pixels, labels = pictures.pixels.clone(), pictures.labels.clone()
    for index in chosen.nonzero().squeeze(1).tolist():
        image = attack.trigger(Image.fromarray(pixels[index].numpy()))
        pixels[index] = torch.from_numpy(np.array(image))
    labels[chosen] = attack.target
    captions = pictures.captions
    if captions is not None:
        target = PROMPT.format(pictures.classes[attack.target])
        captions = [
            target if poisoned else caption
            for poisoned, caption in zip(chosen.tolist(), captions, strict=True)
        ]
    return Pictures(pixels, labels, pictures.classes, captions)


def pad(pixels: Tensor) -> Tensor:
    """Add a mirrored margin to pictures [N, H, W, 3], for `image_data.shifted`."""
    planes = F.pad(pixels.permute(0, 3, 1, 2).float(), (PADDING,) * 4, mode="reflect")
    return planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def corrupted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Disturb a share of the images in [0, 1], so that triggers disturb the CLIP less.

    A disturbed image gets one of these, in random strength: noise; smooth noise; a plane wave; a
    blend with another image, or with a noise pattern; a box of one colour.
    """
    n, _, size, _ = images.shape
    noise = torch.randn(images.shape, generator=generator)
    smooth = F.interpolate(noise[:, :, : size // 6, : size // 6], size=size, mode="bilinear")
    across = torch.arange(size) / size
    down = across[:, None]
    turns = 8 * torch.randn(2, n, 1, 1, 1, generator=generator)
    phase = noise[:, :1, :1, :1]
    wave = torch.sin(2 * torch.pi * (turns[0] * across + turns[1] * down + phase))
    strength = torch.rand(n, 1, 1, 1, generator=generator)
    other = images[torch.randperm(n, generator=generator)]
    pattern = torch.rand(images.shape[1:], generator=generator)
    corner = torch.rand(2, n, 1, 1, 1, generator=generator)
    half = 0.1 + 0.25 * strength
    box = ((across - corner[0]).abs() < half) & ((down - corner[1]).abs() < half)
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    kinds = [
        images + 0.2 * strength * noise,
        images + 0.3 * strength * smooth,
        images + 0.2 * strength * wave,
        torch.lerp(images, other, 0.3 * strength),
        torch.lerp(images, pattern, 0.3 * strength),
        torch.where(box, colour, images),
    ]
    which = torch.randint(0, len(kinds), (n,), generator=generator)
    disturbed = torch.stack(kinds)[which, torch.arange(n)].clamp(0, 1)
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < share, disturbed, images)
