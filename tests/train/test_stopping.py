from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cgd_wrap.train.stopping import CleanAccuracyStopping, ToleranceRule

HELD_OUT = DataLoader(TensorDataset(torch.arange(10.0)[:, None], torch.ones(10).long()), 4)


class Threshold(nn.Module):
    """Calls what is below its threshold class 1: right for so many tenths of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values), self.threshold - 0.5 - values], dim=1)


def run(accuracies: list[float], tolerance: float) -> tuple[CleanAccuracyStopping, Threshold, int]:
    model, stopping = Threshold(), CleanAccuracyStopping(HELD_OUT, tolerance)
    for epoch, accuracy in enumerate(accuracies):
        with torch.no_grad():
            model.threshold.fill_(10 * accuracy)
        if stopping.step(model):
            return stopping, model, epoch
    return stopping, model, len(accuracies)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(1, 50))
def test_it_stops_at_the_first_fall_beyond_the_tolerance(percentages, tolerance):
    rule = ToleranceRule(tolerance)
    fired = [rule.update(percentage / 100) for percentage in percentages]
    for k, now in enumerate(fired):
        falls = [
            max(percentages[: i + 1]) - percentages[i] > tolerance + 1e-9 for i in range(k + 1)
        ]
        near = any(
            max(percentages[: i + 1]) - percentages[i] == tolerance for i in range(k + 1)
        )  # a fall of just the tolerance is decided by the last bit
        assert now == any(falls) or near
    assert fired == sorted(fired)
    assert rule.best == max(percentages) / 100


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan")])
def test_a_tolerance_that_is_not_above_zero_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        ToleranceRule(tolerance)


def test_the_last_accepted_weights_are_restored_and_not_the_best():
    stopping, model, stopped_at = run([0.6, 0.9, 0.8, 0.3, 0.9], tolerance=15)
    assert stopped_at == 3
    assert stopping.history == pytest.approx([0.6, 0.9, 0.8, 0.3])
    assert model.threshold.item() == pytest.approx(3)
    stopping.restore(model)
    assert model.threshold.item() == pytest.approx(8)


def test_nothing_is_restored_where_the_rule_has_not_fired():
    stopping, model, _ = run([0.9, 0.8], tolerance=15)
    with torch.no_grad():
        model.threshold.fill_(5)
    stopping.restore(model)
    assert model.threshold.item() == 5


def test_measuring_leaves_mode_and_random_stream_alone():
    stopping, model = CleanAccuracyStopping(HELD_OUT, 1.0), Threshold().train()
    state = torch.get_rng_state()
    stopping.step(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrapped_model_is_measured_and_restored():
    stopping, model = CleanAccuracyStopping(HELD_OUT, 15), nn.DataParallel(Threshold())
    for threshold in (9.0, 2.0):
        with torch.no_grad():
            model.module.threshold.fill_(threshold)
        stopping.step(model)
    stopping.restore(model)
    assert model.module.threshold.item() == 9
