"""The guarded loss of a batch, and CLIP's logits corrected for labels that may be wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    return terms_by_share(
        outputs, labels, clip_logits, shares, torch.stack(normalisers),
        alpha=alpha, beta=beta, temperature=temperature, epsilon=epsilon, clean_nll=clean_nll,
    )  # fmt: skip


def terms_by_share(
    outputs: Float[Tensor, "b classes"],
    labels: Int[Tensor, "b"],
    clip_logits: Float[Tensor, "b classes"],
    shares: Float[Tensor, "3 b"],
    divisors: Float[Tensor, "*terms"],
    *,
    alpha: float,
    beta: float,
    temperature: float,
    epsilon: float,
    clean_nll: Float[Tensor, "b"] | None = None,
) -> LossTerms:
    """Compute the three parts of :func:`cgd_loss` from the weight of each sample in each part.

    Args:
        outputs: the trained model's logits, float32.
        labels: the given labels.
        clip_logits: the teacher's logits.
        shares: weights of the samples in the three parts, 0 for samples without that part.
        divisors: of the parts' sums, one or three; where it is 0, the sum stays.
        alpha: weight of the guidance.
        beta: weight of the unlearning.
        temperature: T, softens both distributions of the guidance.
        epsilon: keeps the unlearning bounded.
        clean_nll: a loss of each sample in place of the cross entropy.
    """
    shares = shares / divisors.masked_fill(divisors <= 0, 1.0)[..., None]
    shares[1].mul_(alpha * temperature**2)
    shares[2].mul_(beta)
    teacher = clip_logits.float()
    teacher = F.log_softmax(teacher if temperature == 1 else teacher / temperature, dim=1)
    if clean_nll is None:
        return LossTerms(*_sums(outputs, labels, teacher, shares, temperature, epsilon))
    sums = _sums(outputs, labels, teacher, shares, temperature, epsilon)
    return LossTerms(_weighed(clean_nll, shares[0]), *sums[1:])


def _weighed(values: Float[Tensor, "*terms b"], shares: Float[Tensor, "*terms b"]) -> Tensor:
    """Sum values by their shares; a value without a share may be inf, and doesn't spoil the sum."""
    return (values * shares).masked_fill(shares == 0, 0.0).sum(dim=-1)


def _plain_sums(
    outputs: Tensor, labels: Tensor, teacher: Tensor, shares: Tensor, t: float, epsilon: float
) -> tuple[Tensor, ...]:
    """Sums of the three parts over the samples, by the samples' shares [3, b]."""
    log_p = F.log_softmax(outputs, dim=1)
    softened = log_p if t == 1 else F.log_softmax(outputs / t, dim=1)
    of_label = log_p.gather(1, labels[:, None]).squeeze(1)
    kl = F.kl_div(softened, teacher, reduction="none", log_target=True).sum(dim=1)
    values = torch.stack([-of_label, kl, torch.log(of_label.exp() + epsilon)])
    return _weighed(values, shares).unbind()


def _sums(outputs: Tensor, labels: Tensor, teacher: Tensor, *numbers: Any) -> tuple[Tensor, ...]:
    """The sums of :func:`_plain_sums`, quicker where neither a compiler nor torch.func looks on."""
    plain = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    sums: tuple[Tensor, ...] = (_plain_sums if plain else _Sums.apply)(
        outputs, labels, teacher, *numbers
    )
    return sums


class _Sums(torch.autograd.Function):
    """:func:`_plain_sums` with the gradient written out: a quarter of the kernels.

    With ``p`` the softmax of the outputs, ``q`` that of the outputs over T, and shares s:
    ``dL/do = (s_clean - s_unlearning p_y / (p_y + epsilon)) (p - e_y) + s_guidance (q - c) / T``.
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, labels: Tensor, teacher: Tensor, shares: Tensor,
        t: float, epsilon: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        log_p = torch.log_softmax(outputs, dim=1)
        softened = log_p if t == 1 else torch.log_softmax(outputs / t, dim=1)
        of_label = log_p.gather(1, labels[:, None]).squeeze(1)
        taught, p_label = teacher.exp(), of_label.exp()
        kl = (taught * (teacher - softened)).sum(dim=1)
        values = torch.stack([-of_label, kl, torch.log(p_label + epsilon)])
        ctx.save_for_backward(outputs, labels, teacher, shares, log_p, softened, taught, p_label)
        ctx.numbers = t, epsilon
        return _weighed(values, shares).unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outputs, labels, teacher, shares, log_p, softened, taught, p_label = ctx.saved_tensors
        t, epsilon = ctx.numbers
        if torch.is_grad_enabled():  # by create_graph: the gradient is to be differentiated, too
            sums = _plain_sums(outputs, labels, teacher, shares, t, epsilon)
            again = torch.autograd.grad(sums, outputs, gradients, create_graph=True)
            return *again, None, None, None, None, None
        clean, guidance, unlearning = (shares * torch.stack(gradients)[:, None]).unsqueeze(2)
        pull = clean - unlearning * (p_label / (p_label + epsilon))[:, None]
        gradient = log_p.exp() * pull
        gradient.scatter_add_(1, labels[:, None], -pull)
        gradient.addcmul_(softened.exp() - taught, guidance, value=1 / t)
        return gradient, None, None, None, None, None


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
