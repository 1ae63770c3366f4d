"""Two kinds of samples, told apart by one number."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Beta

from cgd_wrap.split.two_kinds import probability_of_higher_kind


def draw(alpha: float, beta: float, count: int, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Beta(torch.tensor(alpha).double(), torch.tensor(beta).double()).sample((count,))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_mean_probability_is_the_share_of_the_higher_kind(share):
    high = round(2000 * share)
    values = torch.cat([draw(2, 6, 2000 - high), draw(20, 3, high, seed=1)])
    probability = probability_of_higher_kind(values)
    assert float(probability.mean()) == pytest.approx(share, abs=0.04)
    assert float(probability[-high:].mean()) > 0.9


def test_the_probability_is_the_bayes_rule_of_the_true_densities():
    low, high = (
        Beta(torch.tensor(2.0), torch.tensor(6.0)),
        Beta(torch.tensor(8.0), torch.tensor(3.0)),
    )
    values = torch.cat([draw(2, 6, 30_000), draw(8, 3, 10_000, seed=1)])
    odds = 3 * (low.log_prob(values) - high.log_prob(values)).exp()
    between = (values > 0.3) & (values < 0.7)
    error = probability_of_higher_kind(values)[between] - (1 / (1 + odds))[between]
    assert float(error.abs().max()) < 0.05


def test_it_never_falls_and_keeps_the_order_of_its_input():
    values = torch.cat([draw(0.3, 0.6, 300), draw(6, 2, 300, seed=1)])
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    probability = probability_of_higher_kind(values)
    assert bool((probability[values.argsort()].diff() >= 0).all())
    torch.testing.assert_close(probability_of_higher_kind(values[shuffled]), probability[shuffled])


@pytest.mark.parametrize(
    "values",
    [[], [0.4], [0.2, 0.9], [0.5] * 50, [0.0] * 50, [1.0] * 50, [0.01 * i for i in range(40)]],
)
def test_no_second_kind_is_made_up(values):
    assert probability_of_higher_kind(torch.tensor(values)).eq(0).all()


def test_values_at_both_ends_are_told_apart():
    probability = probability_of_higher_kind(torch.tensor([0.0] * 30 + [1.0] * 10))
    assert probability.tolist() == [0.0] * 30 + [1.0] * 10
