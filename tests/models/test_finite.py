from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cgd_wrap.errors import TrainingDivergedError
from cgd_wrap.models.finite import FirstBadStep, TrainingWatch, gradient_norm, not_finite

CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10.0, -11.0])
def test_the_first_bad_step_is_found_however_many_follow(bad):
    watch = FirstBadStep({"loss": 10.0, "gradient": math.inf}, CPU)
    for step in range(1, 6):
        loss = bad if step >= 3 else 9.9
        watch.see(step, torch.tensor(loss), torch.tensor(1e30 if step < 4 else math.nan))
        assert watch.look() == (None if step < 3 else ("loss", 3))


def test_a_number_that_is_bad_earlier_is_named():
    watch = FirstBadStep({"loss": 10.0, "gradient": math.inf}, CPU)
    watch.see(1, torch.tensor(0.0), torch.tensor(math.nan))
    watch.see(2, torch.tensor(math.nan), torch.tensor(0.0))
    assert watch.look() == ("gradient", 1)


def test_the_first_of_all_processes_is_found():
    watch = FirstBadStep({"loss": 10.0}, CPU)
    watch.see(7, torch.tensor(math.nan))
    other = torch.tensor([[4]])
    assert watch.look(lambda mine: torch.cat([mine, other])) == ("loss", 4)


def test_half_precision_counts_as_it_is():
    watch = FirstBadStep({"loss": math.inf}, CPU)
    watch.see(1, torch.tensor(7e4).half())
    assert watch.look() == ("loss", 1)


def test_weights_and_buffers_that_are_no_numbers_are_named():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net.register_buffer("whole", torch.arange(3))
    assert not_finite(net) == set()
    with torch.no_grad():
        net[0].bias[1] = math.nan
        net[1].running_var[0] = math.inf
    assert not_finite(net) == {"0.bias", "1.running_var"}
    assert not_finite(nn.Flatten()) == set()


def test_the_norm_is_that_of_all_gradients():
    net = nn.Linear(2, 1, bias=False)
    net(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert float(gradient_norm(net)) == pytest.approx(5.0)


def test_a_training_is_refused_by_its_weights_and_named_by_its_loss():
    net = nn.Linear(1, 1)
    net.register_buffer("mask", torch.tensor([-math.inf, 0.0]))
    watch = TrainingWatch(net, CPU, steps=6, epochs=3)
    for step in range(1, 7):
        watch.see(torch.tensor(math.nan if step >= 4 else 1.0))
    watch.check(net)  # as where a scaler has skipped the step
    with torch.no_grad():
        net.weight.fill_(math.nan)
    with pytest.raises(
        TrainingDivergedError, match="'weight' is NaN or infinite, as is its loss"
    ) as e:
        watch.check(net)
    assert (e.value.step, e.value.epoch) == (4, 2)
