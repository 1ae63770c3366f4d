"""The network of our own that is trained on small copies of the images."""

from __future__ import annotations

import pytest
import torch

from cgd_wrap.models.suspicious_network import SuspiciousNetwork, side_for


@pytest.mark.parametrize("side", [16, 32, 64, 96])
def test_it_reads_images_in_bytes_on_a_grid(side: int) -> None:
    torch.manual_seed(0)
    network = SuspiciousNetwork(7, side).eval()
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    seen: list[torch.Size] = []
    network.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    assert network(images).shape == (3, 7)
    cell = max(1, side // 32)
    assert seen == [(3, 3 * cell**2, side // cell, side // cell)]


def test_no_pixel_is_lost() -> None:
    """A change of any one pixel reaches the first layer."""
    network = SuspiciousNetwork(2, 64).eval()
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, 2, 37, 53] = 255
    first = network.network[0][0]
    found: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    network(images)
    assert int((found[0][0] != found[0][1]).sum()) == 1


@pytest.mark.parametrize(
    ("shorter", "most", "side"),
    [
        (28, 64, 32),
        (32, 64, 32),
        (33, 64, 64),
        (64, 96, 64),
        (500, 96, 96),
        (500, 80, 64),
        (9, 16, 16),
    ],
)
def test_images_are_hardly_enlarged(shorter: int, most: int, side: int) -> None:
    assert side_for(shorter, most) == side
