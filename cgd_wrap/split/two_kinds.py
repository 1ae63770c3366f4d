"""Telling two kinds of samples apart by one number in [0, 1], without labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional import members_by_class

ROUNDS = 50  # rounds of expectation maximisation, which settles in about 20
EDGE = 1e-3  # a Beta density may be infinite at 0 and 1
LEAST_PER_KIND = 2.0  # least weight of a kind, in samples: fewer have no spread
BLOCK = 1 << 14  # values that are worked on at a time: few enough for a processor's own cache


def probability_of_higher_kind(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Probability that each value belongs to the higher of two kinds, never falling with the value.

    A mixture of two Beta distributions is fitted by expectation maximisation with method-of-moments
    steps, as Arazo et al. do to tell mislabelled samples by their loss (arXiv 1904.11238). Below
    the lower kind's mean the probability is 0; above the higher kind's mean the probability is 1.

    The order of all additions is the same on every machine, for any number of threads. Exponentials
    differ between processors in the last digit, and the probabilities may do so, too.

    Args:
        values: in [0, 1].

    Returns:
        float64; all 0 if two kinds can't be told apart, since values are too few or too much alike.
    """
    known = values.double().numpy()
    inside = known.clip(EDGE, 1 - EDGE)
    logs = np.stack([np.log(inside), np.log1p(-inside)])
    # In float32: the rounds don't quite forget where they began, and stored results began so.
    higher = np.where(inside > 0.5, np.float32(0.99), np.float32(0.01)).astype(np.float64)
    whole, means = _weighted_sums(inside, np.ones_like(inside)), np.zeros(2)
    for _ in range(ROUNDS):
        part = _weighted_sums(inside, higher)
        sums = np.stack([whole - part, part])
        total = sums[:, 0]
        if total.min() < LEAST_PER_KIND:
            return torch.zeros(len(known), dtype=torch.float64)
        means = sums[:, 1] / total
        variance = (sums[:, 2] / total - means**2).clip(min=1e-6)
        # Moments of a Beta: variance < mean (1 - mean), and concentration > 0.
        concentration = (means * (1 - means) / variance - 1).clip(min=0.1)
        _set_probability(higher, logs, total, means * concentration, (1 - means) * concentration)
    higher[known <= means[0]] = 0.0
    higher[known >= means[1]] = 1.0
    order = known.argsort()
    higher[order] = np.maximum.accumulate(higher[order])
    return torch.from_numpy(higher)


def probability_by_class(
    labels: Int[Tensor, "n"],
    place: Callable[[Int[Tensor, "k"]], Float[Tensor, "k"]],
    suspected: Bool[Tensor, "classes"],
) -> Float[Tensor, "n"]:
    """Probability of each sample to be of the higher of its class' two kinds, by a place in [0, 1].

    In each suspected class, a mixture of two kinds is fitted to the places: see
    :func:`probability_of_higher_kind`. ``place`` gives them by index, NaN for unreadable samples.

    Returns:
        float64; 0 in classes that aren't suspected, and for unreadable samples.
    """
    probability = torch.zeros(len(labels), dtype=torch.float64)
    for members in members_by_class(labels, suspected[labels]):
        places = place(members)
        readable = places.isfinite()
        probability[members[readable]] = probability_of_higher_kind(places[readable])
    return probability


def probability_of_poison(
    labels: Int[Tensor, "n"],
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    suspected: Bool[Tensor, "classes"],
) -> Float[Tensor, "n"]:
    """Probability that each sample is poisoned, by its place in the corner of the map.

    Args:
        labels: given labels.
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        suspected: classes with enough of :func:`~cgd_wrap.split.suspicion.evidence_in_corner`.

    Returns:
        float64 in [0, 1]; 0 in classes that aren't suspected, and for unreadable samples.
    """
    return probability_by_class(
        labels, lambda some: clip_rank[some] * (1 - suspicious_rank[some]), suspected
    )


def expected_mistakes(
    labels: Int[Tensor, "n"], probability: Float[Tensor, "n"]
) -> Float[Tensor, "classes"]:
    """Expected mistakes of calling a class' samples poisoned or not, as a share of its poison.

    On real CIFAR-10 they were fewer by CLIP's rank than by the corner for WaNet, BppAttack
    and FLIP at 5 and 10%, the label flip at 5% and Input-aware at 1 and 5%; there was no attack
    for which they were fewer, and the corner told the two kinds better.
    """
    some, number = probability.nonzero().squeeze(1), int(labels.max()) + 1
    given, likely = labels[some], probability[some]
    mistakes, poison = (
        torch.bincount(given, weights=each, minlength=number)
        for each in (torch.minimum(likely, 1 - likely), likely)
    )
    return mistakes / poison.clamp(min=1)


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]


def _weighted_sums(inside: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums of the weights, of the weighted values and of their weighted squares, [3]."""
    sums = np.zeros(3)
    for block in _blocks(len(inside)):
        first = weight[block] * inside[block]
        sums += weight[block].sum(), first.sum(), (first * inside[block]).sum()
    return sums


def _set_probability(
    higher: np.ndarray, logs: np.ndarray, total: np.ndarray, a: np.ndarray, b: np.ndarray
) -> None:
    """Set the probability of the higher kind by two Beta distributions and the kinds' sizes."""
    lower_log, higher_log = (
        math.log(t) + math.lgamma(x + y) - math.lgamma(x) - math.lgamma(y)
        for t, x, y in zip(total, a, b, strict=True)
    )
    for block in _blocks(len(higher)):
        odds = (a[0] - a[1]) * logs[0, block]
        odds += (b[0] - b[1]) * logs[1, block]
        odds += lower_log - higher_log
        torch.from_numpy(odds).exp_()  # twice as quick as NumPy's; a block has one thread
        odds += 1
        np.reciprocal(odds, out=higher[block])
