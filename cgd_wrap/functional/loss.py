"""The guarded loss of a batch, and CLIP's logits corrected for labels that may be wrong."""

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
        """Sum of the three parts, which training minimises."""
        return self.clean + self.guidance + self.unlearning


class Normalisers(NamedTuple):
    """Divisors of the sums over samples in the three parts of the loss."""

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
        """Take the batch's own sums of weights, which makes each part a mean over the batch."""
        return cls(clean.sum(), guidance.sum(), unlearning.sum())


class SampleWeights(NamedTuple):
    """Weights of a batch's triggered samples in two parts of the loss; None weighs each by 1."""

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
    """Compute the three parts of :func:`cgd_loss`, from its arguments and three more.

    - ``weights``: weight of each triggered sample in the guidance and in the unlearning, 1 by
      default; they take the place of ``triggered_weight``.
    - ``clean_nll``: a loss per sample in place of the cross entropy, such as a smoothed one.
    - ``normalisers``: divisors in place of the batch's own counts; see
      :class:`~cgd_wrap.train.loss.CGDLoss`.
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
    log_p = softened = F.log_softmax(outputs, dim=1)
    teacher = clip_logits.float()
    if temperature != 1:
        softened, teacher = F.log_softmax(outputs / temperature, dim=1), teacher / temperature
    kl = F.kl_div(softened, F.log_softmax(teacher, dim=1), reduction="none", log_target=True).sum(
        dim=1
    )
    given = log_p.gather(1, labels[:, None]).squeeze(1)
    means = _masked_means(
        torch.stack([clean_nll, pull * kl, push * torch.log(given.exp() + epsilon)]),
        torch.stack([clean, triggered, triggered]),
        torch.stack(normalisers),
    )
    clean_mean, guidance_mean, unlearning_mean = means.unbind()
    return LossTerms(clean_mean, alpha * temperature**2 * guidance_mean, beta * unlearning_mean)


def _masked_means(
    values: Float[Tensor, "terms b"],
    mask: Bool[Tensor, "terms b"],
    divisors: Float[Tensor, "terms"],
) -> Float[Tensor, "terms"]:
    """Sum values inside a mask, and divide them; 0, with a graph, where a mask is empty.

    The mask comes before the sum, so that an inf outside can't spoil the sum.
    """
    return values.masked_fill(~mask, 0.0).sum(dim=1) / divisors.masked_fill(divisors <= 0, 1.0)


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
    """Compute CGD's loss of a batch (paper, section 3.3).

    Clean samples are learned. Triggered samples are guided towards CLIP's distribution, and their
    labels are unlearned:
    ``mean_clean CE + alpha T^2 mean_triggered KL(softmax(clip/T) || softmax(out/T))
    + beta mean_triggered log(p_y + epsilon)``, in nats, computed in float32.

    Without clean samples in the batch, or without triggered ones, their part is 0, with a graph;
    mixed samples carry no loss. No shape depends on the data, so that nothing waits for the device.

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
        triggered_weight: weight of each sample in the unlearning's mean; None weighs all alike.
    """
    return cgd_loss_terms(
        outputs, labels, clip_logits, clean, triggered,
        alpha=alpha, beta=beta, temperature=temperature, epsilon=epsilon,
        weights=SampleWeights(unlearning=triggered_weight),
    ).total  # fmt: skip


def doubted_teacher(
    clip_logits: Float[Tensor, "t classes"], labels: Int[Tensor, "t"], doubt: Float[Tensor, "t"]
) -> Float[Tensor, "t classes"]:
    """Correct CLIP's logits for labels that are wrong with probability ``doubt``; float32.

    By Bayes' rule, ``log(1 - doubt)`` is added to the label's logit. Otherwise, where CLIP itself
    confuses a class with the attack's target, CLIP would teach the target.

    Args:
        clip_logits: zero-shot logits of the triggered samples, scaled.
        labels: given labels of the triggered samples.
        doubt: probability that each label is wrong, in [0, 1], such as
            :func:`~cgd_wrap.functional.split.corner_weight`.
    """
    doubted = clip_logits.float().clone()
    belief = torch.log1p(-doubt.clamp(max=1 - 1e-6)).to(doubted)
    return doubted.scatter_add_(1, labels[:, None], belief[:, None])
