from __future__ import annotations

import json
import math

import pytest
import torch
from made_up_maps import (
    ENOUGH,
    PER_CLASS,
    attacked_map,
    corner_evidence,
    figures_of,
    honest_map,
)

from cgd_wrap.split.estimate import PoisonEstimate, estimate_poison
from cgd_wrap.split.suspicion import Suspicion
from cgd_wrap.split.two_kinds import probability_of_poison


def estimate_of(labels: torch.Tensor, *given: torch.Tensor) -> PoisonEstimate:
    """``given``: the ranks, and the evidence."""
    *ranks, evidence = given
    probability = probability_of_poison(labels, *ranks, evidence > ENOUGH)
    none = torch.zeros_like(evidence, dtype=torch.bool)
    suspicion = Suspicion(
        evidence, probability, none, probability, none, figures_of(labels, *ranks)
    )
    return estimate_poison(labels, suspicion, sum(ranks).isfinite())


@pytest.mark.parametrize("count", [200, 800])
def test_the_estimate_is_near_the_truth(count):
    labels, *ranks = attacked_map(count, (4, 7))
    evidence = corner_evidence(labels, *ranks)
    estimate = estimate_of(labels, *ranks, evidence)
    assert {found.label for found in estimate.classes} == {4, 7}
    assert estimate.rate == pytest.approx(2 * count / len(labels), rel=0.4)
    for found in estimate.classes:
        assert found.poisoned == pytest.approx(count / PER_CLASS, rel=0.4)
        assert 0.998 < found.confidence <= 1
    assert json.loads(json.dumps(estimate.as_dict()))["rate"] == estimate.rate


def test_the_estimate_of_honest_or_unreadable_data_is_nothing():
    labels, *ranks = honest_map()
    evidence = corner_evidence(labels, *ranks)
    assert estimate_of(labels, *ranks, evidence) == PoisonEstimate(0.0, ())
    unreadable = torch.full((3,), math.nan, dtype=torch.float64)
    nothing = estimate_of(torch.arange(3), unreadable, unreadable, -torch.ones(3).double())
    assert nothing == PoisonEstimate(0.0, ())
