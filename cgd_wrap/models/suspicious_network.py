"""The network that is trained briefly on a user's data, whatever network the user trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cgd_wrap.models.small_resnet import small_resnet

WIDTHS = (16, 32, 64, 128)
GRID = 32  # height and width that the network works on, in cells


class SuspiciousNetwork(nn.Module):
    """A ResNet-9 that reads images in bytes, and learns within a few passes over the data.

    Images of 64 px and more are cut into cells of a few pixels, whose values become channels: a
    trigger of two pixels is still seen, and the network costs no more than at 32 px.

    Args:
        num_classes: number of logits.
        side: height and width of the images, from :func:`side_for`.
    """

    def __init__(self, num_classes: int, side: int = GRID) -> None:
        super().__init__()
        self.cell = max(1, side // GRID)
        network = small_resnet(num_classes, WIDTHS, channels=3 * self.cell**2)
        # In this layout of the memory, a CPU and a GPU with half precision are faster.
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images: Shaped[Tensor, "b 3 side side"]) -> Float[Tensor, "b classes"]:
        """Compute logits of RGB images in [0, 255]."""
        scaled = F.pixel_unshuffle(images.float() / 127.5 - 1.0, self.cell)
        logits: Tensor = self.network(scaled.contiguous(memory_format=torch.channels_last))
        return logits


def side_for(shorter: int, most: int) -> int:
    """Choose the height and width of the network's images, in pixels.

    Args:
        shorter: shorter side of the data set's images, in pixels; they are hardly enlarged.
        most: largest side that is wanted.

    Returns:
        A multiple of 32; ``most`` itself if that is less than 32.
    """
    cells = min(-(-shorter // GRID), most // GRID)
    return GRID * cells if cells else most
