"""PreActResNet-18 for small images, under the parameter names of BackdoorBench's checkpoints."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)


class PreActivationBlock(nn.Module):
    """A residual block with activations before its convolutions (He et al. 2016, figure 4e).

    ``x + conv2(relu(bn2(conv1(relu(bn1(x))))))``. Where the shape changes, a 1x1 convolution of
    ``relu(bn1(x))`` takes the place of x.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out, 1)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Compute the block's output."""
        activated = F.relu(self.bn1(x))
        start = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = start + self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out


def preact_resnet18(num_classes: int) -> nn.Sequential:
    """Build a PreActResNet-18: RGB images [B, 3, H, W] -> logits [B, num_classes]."""
    stages: list[tuple[str, nn.Module]] = [("conv1", _conv3x3(3, WIDTHS[0], 1))]
    before = WIDTHS[0]
    for number, width in enumerate(WIDTHS, start=1):
        first = PreActivationBlock(before, width, stride=1 if number == 1 else 2)
        stages.append((f"layer{number}", nn.Sequential(first, PreActivationBlock(width, width, 1))))
        before = width
    head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*stages, *head, ("linear", nn.Linear(before, num_classes))]))


def _conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
