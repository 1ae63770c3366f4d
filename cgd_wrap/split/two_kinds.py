"""Telling two kinds of samples apart by one number in [0, 1], without labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta

ROUNDS = 50  # rounds of expectation maximisation, which settles in about 20
EDGE = 1e-3  # a Beta density may be infinite at 0 and 1
LEAST_PER_KIND = 2.0  # least weight of a kind, in samples: fewer have no spread


def probability_of_higher_kind(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Probability that each value belongs to the higher of two kinds, never falling with the value.

    A mixture of two Beta distributions is fitted by expectation maximisation with method-of-moments
    steps, as Arazo et al. do to tell mislabelled samples by their loss (arXiv 1904.11238). Below
    the lower kind's mean the probability is 0; above the higher kind's mean the probability is 1.

    Args:
        values: in [0, 1].

    Returns:
        float64; all 0 if two kinds can't be told apart, since values are too few or too much alike.
    """
    values = values.double()
    inside = values.clamp(EDGE, 1 - EDGE)
    higher = torch.where(inside > 0.5, 0.99, 0.01).double()
    means = torch.zeros(2, dtype=torch.float64)
    for _ in range(ROUNDS):
        shares = torch.stack([1 - higher, higher])
        total = shares.sum(dim=1)
        if bool((total < LEAST_PER_KIND).any()):
            return torch.zeros_like(values)
        means = (shares * inside).sum(dim=1) / total
        variance = (shares * (inside - means[:, None]) ** 2).sum(dim=1) / total
        # Moments of a Beta: variance < mean (1 - mean), and concentration > 0.
        concentration = (means * (1 - means) / variance.clamp(min=1e-6) - 1).clamp(min=0.1)
        kinds = Beta(means * concentration, (1 - means) * concentration)
        density = kinds.log_prob(inside[:, None]) + total.log()
        higher = density.softmax(dim=1)[:, 1]
    higher = higher.masked_fill(values <= means[0], 0.0).masked_fill(values >= means[1], 1.0)
    order = values.argsort()
    rising = torch.empty_like(higher)
    rising[order] = higher[order].cummax(dim=0).values
    return rising
