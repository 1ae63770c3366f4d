"""The guarded loss of a batch, and CLIP's logits corrected for labels that may be wrong."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.functional.loss_terms import LossTerms, terms_by_share, weighed_shares


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
    """Weights of a batch's samples in the parts of the loss; None weighs each by 1."""

    guidance: Float[Tensor, "b"] | None = None
    unlearning: Float[Tensor, "b"] | None = None
    clean: Float[Tensor, "b"] | None = None


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

    - ``weights``: weight of each triggered sample in the guidance and in the unlearning, and of
      each clean sample, 1 by default; they take the place of ``triggered_weight``.
    - ``clean_nll``: a loss per sample in place of the cross entropy, such as a smoothed one.
    - ``normalisers``: divisors in place of the batch's own counts; see
      :class:`~cgd_wrap.train.loss.CGDLoss`.
    """
    outputs = outputs.float()
    weights = weights or SampleWeights()
    masks = (clean, triggered, triggered)
    given = (weights.clean, weights.guidance, weights.unlearning)
    shares = torch.stack(
        [m.float() if w is None else m * w.float() for m, w in zip(masks, given, strict=True)]
    )
    if normalisers is None:
        normalisers = Normalisers.of_batch(clean.float(), shares[1], shares[2])
    shares = weighed_shares(
        shares, torch.stack(normalisers), alpha=alpha, beta=beta, temperature=temperature
    )
    return terms_by_share(
        outputs, labels, clip_logits.float(), shares,
        temperature=temperature, epsilon=epsilon, clean_nll=clean_nll,
    )  # fmt: skip


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
