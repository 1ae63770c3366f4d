"""Outputs and CLIP's logits -> the guarded loss, and the teacher that doubts a label."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


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


class SampleWeights(NamedTuple):
    """What each triggered sample of a batch counts in two parts of the loss; None: 1 for each."""

    guidance: Float[Tensor, "b"] | None = None
    unlearning: Float[Tensor, "b"] | None = None


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
    weights: SampleWeights | None = None,
    clean_nll: Float[Tensor, "b"] | None = None,
    normalisers: Normalisers | None = None,
) -> LossTerms:
    """The parts of :func:`cgd_loss`, whose arguments it shares, and three more.

    ``weights`` say what each triggered sample counts in guidance and unlearning, 1 by default;
    ``clean_nll`` is a loss per sample in place of the cross entropy, such as a smoothed one;
    ``normalisers`` are divisors in place of the batch's own counts (see ``CGDLoss``).
    """
    outputs = outputs.float()
    if clean_nll is None:
        clean_nll = F.cross_entropy(outputs, labels, reduction="none")
    pull, push = (
        triggered.float() if weight is None else triggered * weight.float()
        for weight in weights or SampleWeights()
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
        weights=SampleWeights(unlearning=triggered_weight),
    ).total  # fmt: skip


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
