"""The network of our own that is trained on small copies of the images."""

from __future__ import annotations

import pytest
import torch

from cgd_wrap.models.suspicious_network import SuspiciousNetwork


@pytest.mark.parametrize("side", [16, 32, 50])
def test_it_reads_images_in_bytes(side: int) -> None:
    torch.manual_seed(0)
    network = SuspiciousNetwork(7).eval()
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (3, 7)
    scaled = images.float() / 127.5 - 1
    assert torch.equal(network.network(scaled), logits)
