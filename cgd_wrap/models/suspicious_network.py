"""The network that is trained briefly on a user's data, whatever network the user trains."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cgd_wrap.models.small_resnet import small_resnet

WIDTHS = (16, 32, 64, 128)


class SuspiciousNetwork(nn.Module):
    """A ResNet-9 that reads images in bytes, and learns within a few passes over the data.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = small_resnet(num_classes, WIDTHS)

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Compute logits of RGB images in [0, 255], of 16 px and more."""
        logits: Tensor = self.network(images.float() / 127.5 - 1.0)
        return logits
