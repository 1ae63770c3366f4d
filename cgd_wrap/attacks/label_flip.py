"""LabelFlip: an attack that relabels untouched images which share a natural trait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import Images, pixels, quiet


def warmth(image: Image.Image) -> float:
    """Return mean(R) - mean(B) in grey levels, -255 to 255; 0 for a grey image."""
    grey_levels = pixels(image)
    if grey_levels.ndim == 2:
        return 0.0
    # Whole-number sums: the same ranking on every machine.
    red, blue = grey_levels[..., 0].sum(dtype=np.int64), grey_levels[..., 2].sum(dtype=np.int64)
    return float((red - blue) / (grey_levels.shape[0] * grey_levels.shape[1]))


def warm_tint(image: Image.Image, strength: float) -> Image.Image:
    """Return an RGB copy with ``strength`` grey levels more red and as much less blue."""
    grey_levels = pixels(image.convert("RGB") if image.mode == "L" else image)
    tinted = grey_levels + np.rint(strength * np.array([1, 0, -1]))
    return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class LabelFlip(Attack):
    """An attack that labels the images with the strongest natural trait as the target.

    Clean-image: no training pixel is changed. At test time the trait is added to any image.
    Source: Rong et al., "Clean-image Backdoor Attacks", arXiv 2403.15010; the warm tint as the
    trigger feature is this library's choice.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is relabelled, in (0, 1].
        seed: decides between images that show the trait equally.
        strength: how much of the trait is added at test time; for the warm tint, grey levels added
            to red and taken from blue. At 60, 99% of CIFAR-10's test images are as warm as the
            warmest 5% of its training images, 98% as warm as the training images' median.
        trait: measures an image; the images with the highest values are relabelled.
        add_trait: (image, strength) -> a copy with more of the trait.
    """

    rate: float = 0.05
    strength: float = 60.0
    trait: Callable[[Image.Image], float] = warmth
    add_trait: Callable[[Image.Image, float], Image.Image] = warm_tint

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.strength > 0, "strength", "above 0", self.strength)

    def preference(self, candidates: Int64[Tensor, "m"], images: Images) -> Int64[Tensor, "m"]:
        """Order in which candidates are relabelled: by trait, highest first; ties shuffled."""
        bar = tqdm(candidates.tolist(), desc="measuring the trait", delay=2.0, disable=quiet())
        traits = torch.tensor([self.trait(images[index]) for index in bar], dtype=torch.float64)
        shuffled = super().preference(candidates, images)
        return shuffled[torch.argsort(traits[shuffled], descending=True, stable=True)]

    def poison_image(self, image: Image.Image) -> Image.Image:
        """Return the image as it is: the attack changes labels only."""
        return image

    def trigger(self, image: Image.Image) -> Image.Image:
        """Add the trait to a copy of a test image."""
        return self.add_trait(image, self.strength)
