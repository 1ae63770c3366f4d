"""The formulas of CGD as pure functions over tensors.

The classes of this package hold state and call these. Symbols are those of the paper
(arXiv 2507.05113); NLL stands for the negative log-likelihood of the given label, in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

if TYPE_CHECKING:
    from cgd_wrap.split import Split

__all__ = [
    "LossTerms",
    "Normalisers",
    "balanced_indices",
    "cgd_loss",
    "cgd_loss_terms",
    "corner_weight",
    "doubted_teacher",
    "label_log_odds_against",
    "label_nll",
    "nll_from_log_odds",
    "normalised_rank",
    "reference_label_nll",
    "reference_rank",
    "split_by_rank",
]


# --- scores -------------------------------------------------------------------------------------


def label_log_odds_against(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Log-odds against the given label, ``log((1 - p_y) / p_y)``, float64, nats.

    A strictly increasing function of the NLL that stays apart where the NLL itself saturates:
    with a logit margin of 110 the NLL is 1e-48, which float32 rounds to 0.

    Args:
        logits: any float type; computed in float64.
        labels: class numbers in ``[0, classes)``.
    """
    wide = logits.double()
    rivals = wide - wide.gather(1, labels[:, None])
    rivals.scatter_(1, labels[:, None], -math.inf)
    return torch.logsumexp(rivals, dim=1)


def nll_from_log_odds(log_odds: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """NLL of the label, ``log(1 + exp(log_odds))``, float32, nats."""
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
        ValueError: for NaN, which has no rank.
    """
    if values.is_floating_point() and bool(values.isnan().any()):
        bad = int(values.isnan().nonzero()[0])
        raise ValueError(f"values hold NaN (first at index {bad}); a NaN has no rank")
    return _rank_of_order(torch.argsort(values.cpu(), stable=True)).to(values.device)


def _rank_of_order(order: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    size = order.numel()
    rank = torch.empty(size, dtype=torch.float64)
    rank[order] = torch.arange(1, size + 1, dtype=torch.float64) / size
    return rank


def reference_label_nll(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """The authors' score, ``-log(softmax(logits)[y])`` in float32; for the paper preset only.

    Ties at 0 where float32 rounds p to 1, and is inf where it rounds p to 0.
    """
    probability = torch.softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    return -torch.log(probability)


def reference_rank(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The authors' ranks: NumPy's default sort, whose order of ties depends on the processor."""
    return _rank_of_order(torch.from_numpy(np.argsort(values.cpu().numpy())))


# --- split and balance --------------------------------------------------------------------------


def split_by_rank(
    clip_rank: Float[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    *,
    sigma_clean: float = 0.2,
    sigma_triggered: float = 0.1,
    sigma_slow: float | None = None,
) -> Split:
    """Cut the entropy map into clean, triggered and mixed samples (paper, section 3.2).

    clean: ``clip_rank <= 1 - sigma_clean`` and ``suspicious_rank >= sigma_clean``;
    triggered: ``clip_rank > 1 - sigma_triggered`` or ``suspicious_rank < sigma_triggered``;
    mixed: the rest. Samples whose ranks are NaN (unreadable ones) are in none of the three.

    With ``sigma_slow``, mixed samples of ``suspicious_rank >= sigma_slow`` are clean, too: they
    were learned too slowly for a backdoor, and CLIP's doubt is not grave.

    Args:
        clip_rank: rank of the label's NLL under CLIP, in (0, 1].
        suspicious_rank: the same under the suspicious model.
        sigma_clean: sigma_1, in [0, 1).
        sigma_triggered: sigma_2, in [0, sigma_clean].
        sigma_slow: in [sigma_clean, 1], or None for the paper's split.

    Raises:
        ValueError: if the thresholds are out of range, or would let the splits overlap.
    """
    from cgd_wrap.split import Split

    if not 0 <= sigma_triggered <= sigma_clean < 1:
        raise ValueError(
            "expected 0 <= sigma_triggered <= sigma_clean < 1, got "
            f"sigma_clean={sigma_clean}, sigma_triggered={sigma_triggered}"
        )
    clean = (clip_rank <= 1 - sigma_clean) & (suspicious_rank >= sigma_clean)
    triggered = (clip_rank > 1 - sigma_triggered) | (suspicious_rank < sigma_triggered)
    if sigma_slow is not None:
        if not sigma_clean <= sigma_slow <= 1:
            raise ValueError(f"expected {sigma_clean=} <= sigma_slow <= 1, got {sigma_slow}")
        clean |= (suspicious_rank >= sigma_slow) & ~triggered & ~clip_rank.isnan()
    readable = ~(clip_rank.isnan() | suspicious_rank.isnan())
    triggered &= readable
    return Split(clean=clean, triggered=triggered, mixed=readable & ~clean & ~triggered)


def balanced_indices(
    labels: Int[Tensor, "n"], clean: Bool[Tensor, "n"], *, generator: torch.Generator
) -> Int[Tensor, "m"]:
    """Indices that hold every class of the clean split as often as the largest.

    Each clean sample appears once; smaller classes are filled up by drawing from their own
    samples with replacement. Ordered by class; classes without a clean sample stay out.
    """
    indices = clean.nonzero().squeeze(1)
    if indices.numel() == 0:
        return indices
    by_class = indices[torch.argsort(labels[indices], stable=True)]
    counts = torch.bincount(labels[indices])
    counts = counts[counts > 0]
    largest = int(counts.max())
    parts = []
    for members in by_class.split(counts.tolist()):
        missing = largest - members.numel()
        draws = torch.randint(members.numel(), (missing,), generator=generator)
        parts += [members, members[draws]]
    return torch.cat(parts)


def corner_weight(
    clip_rank: Float[Tensor, "n"], suspicious_rank: Float[Tensor, "n"], *, power: float
) -> Float[Tensor, "n"]:
    """Weight of the unlearning, ``(clip_rank * (1 - suspicious_rank)) ** power``, in [0, 1].

    It gathers at the corner of the map where both signs agree: CLIP contradicts the label, and
    it was learned fast. Power 0 weighs all alike, as the paper does. NaN ranks weigh 0. float32.
    """
    weight = (clip_rank * (1 - suspicious_rank)) ** power
    return torch.where(weight.isnan(), torch.zeros_like(weight), weight).float()


def doubted_teacher(
    clip_logits: Float[Tensor, "t classes"], labels: Int[Tensor, "t"], doubt: Float[Tensor, "t"]
) -> Float[Tensor, "t classes"]:
    """CLIP's logits, given that the label is wrong with probability ``doubt``; float32.

    By Bayes' rule: ``log(1 - doubt)`` is added to the label's logit. Where CLIP itself confuses a
    class with the attack's target, it would otherwise teach the target.

    Args:
        clip_logits: zero-shot logits of the triggered samples, scaled.
        labels: their given labels.
        doubt: in [0, 1], such as their :func:`corner_weight`.
    """
    doubted = clip_logits.float().clone()
    belief = torch.log1p(-doubt.clamp(max=1 - 1e-6)).to(doubted)
    return doubted.scatter_add_(1, labels[:, None], belief[:, None])


# --- loss ---------------------------------------------------------------------------------------


class LossTerms(NamedTuple):
    """The three parts of the loss, each a scalar already multiplied by its weight, in nats."""

    clean: Float[Tensor, ""]
    guidance: Float[Tensor, ""]
    unlearning: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Their sum, which is what is minimised."""
        return self.clean + self.guidance + self.unlearning


class Normalisers(NamedTuple):
    """What the sums of the three parts of the loss are divided by."""

    clean: Float[Tensor, ""]
    guidance: Float[Tensor, ""]
    unlearning: Float[Tensor, ""]

    @classmethod
    def of_batch(
        cls,
        clean: Float[Tensor, "b"],
        guidance: Float[Tensor, "b"],
        unlearning: Float[Tensor, "b"],
    ) -> Normalisers:
        """The batch's own sums of weights: the loss is then made of means over the batch."""
        return cls(clean.sum(), guidance.sum(), unlearning.sum())


def cgd_loss_terms(
    outputs: Float[Tensor, "b classes"],
    labels: Int[Tensor, "b"],
    clip_logits: Float[Tensor, "b classes"],
    clean: Bool[Tensor, "b"],
    triggered: Bool[Tensor, "b"],
    *,
    alpha: float,
    beta: float,
    temperature: float,
    epsilon: float = 1e-6,
    triggered_weight: Float[Tensor, "b"] | None = None,
    guidance_weight: Float[Tensor, "b"] | None = None,
    clean_nll: Float[Tensor, "b"] | None = None,
    normalisers: Normalisers | None = None,
) -> LossTerms:
    """The parts of :func:`cgd_loss`, whose arguments it shares, and three more.

    ``guidance_weight`` is to the guidance what ``triggered_weight`` is to the unlearning;
    ``clean_nll`` is a loss per sample in place of the cross entropy, such as a smoothed one;
    ``normalisers`` are divisors in place of the batch's own counts (see ``CGDLoss``).
    """
    outputs = outputs.float()
    if clean_nll is None:
        clean_nll = F.cross_entropy(outputs, labels, reduction="none")
    pull, push = (
        triggered.float() if weight is None else triggered * weight.float()
        for weight in (guidance_weight, triggered_weight)
    )
    if normalisers is None:
        normalisers = Normalisers.of_batch(clean.float(), pull, push)
    log_p = F.log_softmax(outputs, dim=1).gather(1, labels[:, None]).squeeze(1)
    kl = F.kl_div(
        F.log_softmax(outputs / temperature, dim=1),
        F.log_softmax(clip_logits.float() / temperature, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    return LossTerms(
        clean=_masked_mean(clean_nll, clean, normalisers.clean),
        guidance=alpha * temperature**2 * _masked_mean(pull * kl, triggered, normalisers.guidance),
        unlearning=beta
        * _masked_mean(push * torch.log(log_p.exp() + epsilon), triggered, normalisers.unlearning),
    )


def _masked_mean(
    values: Float[Tensor, "b"], mask: Bool[Tensor, "b"], normaliser: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Sum over the mask, divided by the normaliser; 0 with a graph where nothing is masked.

    ``where`` comes before the sum, so that an inf outside the mask can't spoil it.
    """
    total = torch.where(mask, values, torch.zeros_like(values)).sum()
    return total / torch.where(normaliser > 0, normaliser, torch.ones_like(normaliser))


def cgd_loss(
    outputs: Float[Tensor, "b classes"],
    labels: Int[Tensor, "b"],
    clip_logits: Float[Tensor, "b classes"],
    clean: Bool[Tensor, "b"],
    triggered: Bool[Tensor, "b"],
    *,
    alpha: float,
    beta: float,
    temperature: float,
    epsilon: float = 1e-6,
    triggered_weight: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """CGD's loss (paper, section 3.3): learn the clean, guide and unlearn the triggered.

    ``mean_clean CE + alpha T^2 mean_triggered KL(softmax(clip/T) || softmax(out/T))
    + beta mean_triggered log(p_y + epsilon)``, in nats, computed in float32.

    A batch without clean or without triggered samples contributes 0 there, with a graph; mixed
    samples carry no loss. Shapes are static: nothing waits for the device.

    Args:
        outputs: the trained model's logits, any float type.
        labels: the given (possibly poisoned) labels.
        clip_logits: the teacher's logits, used as given; read for triggered samples only.
        clean: members of the clean split.
        triggered: members of the triggered split.
        alpha: weight of the guidance.
        beta: weight of the unlearning (negative cross entropy).
        temperature: T, softens both distributions of the guidance.
        epsilon: keeps the unlearning bounded: ``log(p_y + epsilon) >= log(epsilon)``.
        triggered_weight: turns the unlearning mean into a weighted one.
    """
    return cgd_loss_terms(
        outputs, labels, clip_logits, clean, triggered,
        alpha=alpha, beta=beta, temperature=temperature, epsilon=epsilon,
        triggered_weight=triggered_weight,
    ).total  # fmt: skip
