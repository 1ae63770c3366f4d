"""Scoring the given labels by a model's logits: negative log-likelihoods (NLL), ranks, shares."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

BLOCK = 1 << 18  # numbers that are worked on at a time: few enough for a processor's own cache


def label_log_odds_against(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Log-odds against each given label, ``log((1 - p_y) / p_y)``, float64, nats.

    The log-odds rise strictly with the NLL, and stay distinct where the NLL saturates: with a logit
    margin of 110 the NLL is 1e-48, which float32 rounds to 0.

    Args:
        logits: any float type; computed in float64, some rows at a time.
        labels: class numbers in ``[0, classes)``.
    """
    log_odds = logits.new_empty(len(logits), dtype=torch.float64)
    rows = max(1, BLOCK // max(logits.shape[1], 1))
    for start in range(0, len(logits), rows):
        here = slice(start, start + rows)
        wide, given = logits[here].double(), labels[here, None]
        rivals = (wide - wide.gather(1, given)).scatter_(1, given, -math.inf)
        log_odds[here] = torch.logsumexp(rivals, dim=1)
    return log_odds


def log_odds_against_all(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Log-odds against each class, as :func:`label_log_odds_against` gives them for one, float64.

    Quick, but of a class that is all but certain only the order of magnitude is right.
    """
    nll = -logits.double().log_softmax(dim=1)
    return nll + torch.log(-torch.expm1(-nll.clamp(min=1e-15)))


def nll_from_log_odds(log_odds: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """NLL of each label from the log-odds against it, ``log(1 + exp(log_odds))``, float32, nats."""
    zero = torch.zeros_like(log_odds)
    return torch.logaddexp(zero, log_odds).float()


def label_nll(logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Negative log-likelihood of each given label, float32, nats.

    ``-log softmax(logits)[y]`` by way of the log-odds, so that it neither overflows for labels
    that the model rejects nor loses its digits for those that it is sure of.

    Args:
        logits: any float type; computed in float64.
        labels: class numbers in ``[0, classes)``.
    """
    return nll_from_log_odds(label_log_odds_against(logits, labels))


def normalised_rank(values: Shaped[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Position of each value in ascending order, divided by N: float64 in (0, 1].

    Equal values are ranked by index, so that the ranks are the same on every machine.

    Raises:
        ValueError: a value is NaN, which has no rank.
    """
    if values.is_floating_point() and bool(values.isnan().any()):
        bad = int(values.isnan().nonzero()[0])
        raise ValueError(f"values hold NaN (first at index {bad}); a NaN has no rank")
    return _rank_of_order(_ascending(values.detach().cpu())).to(values.device)


def _ascending(values: Shaped[Tensor, "n"]) -> np.ndarray:
    """Indices of values in ascending order, equal values by index; quick for float64.

    Whole numbers are sorted several times faster than a list of places is. So the first digits of
    each value and its index make up a whole number. Values whose first digits are the same are put
    in order by themselves.
    """
    if not values.is_floating_point():
        return np.argsort(values.numpy(), kind="stable")
    known = (values.double() + 0.0).numpy()  # -0.0, which equals 0.0, becomes 0.0
    bits = known.view(np.int64)
    keys = (bits ^ ((bits >> 63) & np.iinfo(np.int64).max)).astype(np.int64, copy=False)
    mask = (1 << max(len(keys) - 1, 0).bit_length()) - 1
    keys &= ~mask
    keys |= np.arange(len(keys))
    keys.sort()
    tied = np.zeros(len(keys), dtype=bool)
    same = keys[1:] ^ keys[:-1] <= mask
    tied[1:] |= same
    tied[:-1] |= same
    keys &= mask
    close = keys[tied]
    keys[tied] = close[np.argsort(known[close], kind="stable")]
    return keys


def _rank_of_order(order: np.ndarray) -> Float[Tensor, "n"]:
    rank, places = np.empty(len(order)), np.arange(1.0, len(order) + 1)
    places /= max(len(order), 1)
    rank[order] = places
    return torch.from_numpy(rank)


def reference_label_nll(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """NLL of each given label as the authors compute it, ``-log(softmax(logits)[y])`` in float32.

    For the paper preset only: scores tie at 0 where float32 rounds p to 1, and are inf where
    float32 rounds p to 0.
    """
    probability = torch.softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    return -torch.log(probability)


def reference_rank(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Rank values as the authors do: NumPy's default sort, whose ties depend on the processor."""
    return _rank_of_order(np.argsort(values.cpu().numpy()))


def auroc(scores: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> float:
    """Area under the ROC curve: how often a positive outscores a negative, ties counting half.

    ``(R - P (P + 1) / 2) / (P Q)`` with R the sum of the P positives' ranks among all n = P + Q
    scores, equal scores sharing their average rank (Mann-Whitney).

    Returns:
        In [0, 1]; NaN where all samples are positive or none is.
    """
    positives = int(positive.sum())
    negatives = positive.numel() - positives
    if positives == 0 or negatives == 0:
        return math.nan
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    average_rank = counts.cumsum(0).double() - (counts.double() - 1) / 2
    rank_sum = float(average_rank[place[positive]].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def share_by_class(
    values: Float[Tensor, "n"] | Bool[Tensor, "n"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "classes"]:
    """Mean of each class' values, up to the largest label, float64; NaN for an empty class."""
    return torch.bincount(labels, weights=values.double()) / torch.bincount(labels)
