"""A small residual network that trains in seconds on a CPU, for the demo and for attacks."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two convolutions whose output is added to their input: `x + f(f(x))`.

    Args:
        channels: Channels of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Compute `x + f(f(x))`."""
        out: Tensor = x + self.body(x)
        return out


def conv_block(channels_in: int, channels_out: int, *, pool: bool = False) -> nn.Sequential:
    """A 3x3 convolution, batch normalisation and ReLU; `pool` halves height and width after it."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def small_resnet(
    num_classes: int,
    widths: tuple[int, int, int, int] = (16, 32, 64, 128),
    *,
    channels: int = 3,
) -> nn.Sequential:
    """A ResNet-9 for images of 16 px and more, made for 32 px.

    Args:
        num_classes: Number of logits, at least 1.
        widths: Channels of the stem and of the three stages. The default has 0.41 million
            parameters; (8, 16, 32, 64) has a quarter of them and is about three times as fast.
        channels: Channels of the images.

    Returns:
        A module: float images [B, channels, H, W] -> logits [B, num_classes].

    Raises:
        ValueError: `num_classes` or a width is below 1.
    """
    if num_classes < 1 or min(widths) < 1:
        raise ValueError(
            "small_resnet: num_classes and every width must be at least 1, "
            f"got num_classes={num_classes}, widths={widths}"
        )
    stem, first, second, third = widths
    return nn.Sequential(
        conv_block(channels, stem),
        conv_block(stem, first, pool=True),
        ResidualBlock(first),
        conv_block(first, second, pool=True),
        conv_block(second, third, pool=True),
        ResidualBlock(third),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(third, num_classes),
    )
