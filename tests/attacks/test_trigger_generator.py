from __future__ import annotations

import pytest
import torch

from cgd_wrap.attacks.trigger_generator import TriggerGenerator, spread_loss


def test_spread_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 5, 3, 8, 8, generator=generator)
    planes, other_planes = torch.rand(2, 5, 1, 8, 8, generator=generator)
    expected = 0.0
    for row in range(5):
        apart = float(((images[row] - others[row]) ** 2).mean()) ** 0.5
        drawn = float(((planes[row] - other_planes[row]) ** 2).mean()) ** 0.5
        expected += apart / drawn / 5
    assert float(spread_loss(images, others, planes, other_planes)) == pytest.approx(expected)


def test_spread_loss_has_a_slope_where_triggers_coincide() -> None:
    planes = torch.zeros(2, 1, 4, 4, requires_grad=True)
    spread_loss(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), planes, planes * 1).backward()
    assert planes.grad is not None
    assert planes.grad.isfinite().all()


@pytest.mark.parametrize("size", [(8, 8), (17, 30), (33, 16)])
def test_generators_keep_the_size(size: tuple[int, int]) -> None:
    planes = TriggerGenerator(3).eval()(torch.rand(2, 3, *size))
    assert planes.shape == (2, 3, *size)
    assert planes.min() >= 0
    assert planes.max() <= 1
