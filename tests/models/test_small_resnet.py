from __future__ import annotations

import numpy as np
import pytest
import torch

from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.models.small_resnet import small_resnet


@pytest.fixture(scope="module")
def shapes() -> ShapesDataset:
    return ShapesDataset(1000, seed=0)


@pytest.mark.parametrize("num_classes", [1, 10])
def test_small_resnet_has_the_stated_size_and_shape(num_classes):
    model = small_resnet(num_classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 0.40e6 < count < 0.42e6
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)


def test_small_resnet_refuses_no_classes():
    with pytest.raises(ValueError, match="num_classes=0"):
        small_resnet(0)


@pytest.mark.slow
def test_a_narrow_network_learns_the_shapes(shapes):
    """Far above chance after four passes over a few pictures; the demo trains much longer."""
    images = torch.from_numpy(np.stack([np.asarray(shapes[i][0]) for i in range(1000)]))
    images, labels = images.permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor(shapes.targets)
    torch.manual_seed(0)
    model = small_resnet(10, widths=(8, 16, 32, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for batch in torch.arange(800).repeat(4).split(32):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    assert (model(images[800:]).argmax(1) == labels[800:]).float().mean() > 0.4
