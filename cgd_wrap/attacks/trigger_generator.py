"""A small network that draws a trigger of its own for every image."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

_WIDTHS = (16, 32, 64)
_STEEPNESS = 10.0  # factor before a mask's sigmoid: a pixel is nearly in the mask, or nearly out


class TriggerGenerator(nn.Module):
    """An encoder and decoder: images [B, 3, H, W] in [0, 1] -> planes [B, planes, H, W] in [0, 1].

    Args:
        planes: 1 for a mask, 3 for a pattern.
        steepness: factor before the last sigmoid.
    """

    def __init__(self, planes: int, steepness: float = 1.0) -> None:
        super().__init__()
        channels, self.steepness = (3, *_WIDTHS), steepness
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b), _convolution(b, b)) for a, b in pairwise(channels)
        )
        backwards = (*reversed(_WIDTHS), _WIDTHS[0])
        self.up = nn.ModuleList(
            nn.Sequential(_convolution(a, a), _convolution(a, b)) for a, b in pairwise(backwards)
        )
        self.last = nn.Conv2d(backwards[-1], planes, 3, padding=1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b planes h w"]:
        """Draw the planes for a batch of images, at the images' size."""
        sizes, planes = [], 2 * images - 1
        for stage in self.down:
            sizes.append(planes.shape[-2:])
            planes = nn.functional.max_pool2d(stage(planes), 2, ceil_mode=True)
        for stage, size in zip(self.up, reversed(sizes), strict=True):
            planes = stage(nn.functional.interpolate(planes, size=size, mode="bilinear"))
        out: Tensor = torch.sigmoid(self.steepness * self.last(planes))
        return out


class TriggerPair(nn.Module):
    """Two generators, of the mask and of the pattern: ``x' = x + m(x) (p(x) - x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = TriggerGenerator(1, _STEEPNESS)
        self.pattern = TriggerGenerator(3)

    def forward(
        self, images: Float[Tensor, "b 3 h w"], onto: Float[Tensor, "b 3 h w"] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """Put the triggers of ``images`` on the images themselves, or on the images ``onto``."""
        under = images if onto is None else onto
        out: Tensor = under + self.mask(images) * (self.pattern(images) - under)
        return out


def spread_loss(
    images: Float[Tensor, "b 3 h w"],
    others: Float[Tensor, "b 3 h w"],
    planes: Float[Tensor, "b c h w"],
    other_planes: Float[Tensor, "b c h w"],
) -> Float[Tensor, ""]:
    """Mean of ``|x - y| / |g(x) - g(y)|``: large where different images get alike triggers.

    Equation 7 of arXiv 2010.08138, with distances as root mean squares.
    """
    apart = (images - others).square().flatten(1).mean(dim=1).sqrt()
    drawn = (planes - other_planes).square().flatten(1).mean(dim=1)
    # The root has no finite slope at 0, where two triggers are equal.
    return (apart / (drawn + 1e-8).sqrt()).mean()


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        # No BatchNorm: an image's trigger must not depend on the other images of the batch.
        nn.GroupNorm(channels_out // 8, channels_out),
        nn.ReLU(inplace=True),
    )
