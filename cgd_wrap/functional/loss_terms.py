"""The parts of the guarded loss from the weight of each sample in each part, and their gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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


def terms_by_share(
    outputs: Float[Tensor, "b classes"],
    labels: Int[Tensor, "b"],
    clip_logits: Float[Tensor, "b classes"],
    shares: Float[Tensor, "3 b"],
    *,
    temperature: float,
    epsilon: float,
    clean_nll: Float[Tensor, "b"] | None = None,
) -> LossTerms:
    """Compute the three parts of :func:`cgd_loss` from the weight of each sample in each part.

    Args:
        outputs: the trained model's logits, float32.
        labels: the given labels.
        clip_logits: the teacher's logits, float32.
        shares: from :func:`weighed_shares`, 0 for samples without that part.
        temperature: T, softens both distributions of the guidance.
        epsilon: keeps the unlearning bounded.
        clean_nll: a loss of each sample in place of the cross entropy.
    """
    sums = _plain_sums(outputs, labels, clip_logits, shares, temperature, epsilon)
    return LossTerms(sums[0] if clean_nll is None else _weighed(clean_nll, shares[0]), *sums[1:])


def weighed_shares(
    shares: Float[Tensor, "3 b"],
    divisors: Float[Tensor, "*terms"] | float,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Float[Tensor, "3 b"]:
    """Multiply each sample's shares in the loss' three parts by the parts' weights.

    Args:
        shares: of clean loss, guidance and unlearning.
        divisors: of the three parts, or one for all; where it is 0, the sum stays.
        alpha: weight of the guidance.
        beta: weight of the unlearning.
        temperature: T of the guidance, whose gradients shrink by its square.
    """
    if isinstance(divisors, Tensor):
        shares = shares / divisors.masked_fill(divisors <= 0, 1.0)[..., None]
    else:
        shares = shares / (divisors if divisors > 0 else 1.0)
    shares[1].mul_(alpha * temperature**2)
    shares[2].mul_(beta)
    return shares


def _weighed(values: Float[Tensor, "*terms b"], shares: Float[Tensor, "*terms b"]) -> Tensor:
    """Sum values by their shares; a value without a share may be inf, and doesn't spoil the sum."""
    return (values * shares).masked_fill(shares == 0, 0.0).sum(dim=-1)


def _plain_sums(
    outputs: Tensor, labels: Tensor, clip_logits: Tensor, shares: Tensor, t: float, epsilon: float
) -> tuple[Tensor, ...]:
    """Sums of the three parts over the samples, by the samples' shares [3, b]."""
    log_p = F.log_softmax(outputs, dim=1)
    softened = log_p if t == 1 else F.log_softmax(outputs / t, dim=1)
    teacher = F.log_softmax(clip_logits if t == 1 else clip_logits / t, dim=1)
    of_label = log_p.gather(1, labels[:, None]).squeeze(1)
    kl = F.kl_div(softened, teacher, reduction="none", log_target=True).sum(dim=1)
    values = torch.stack([-of_label, kl, torch.log(of_label.exp() + epsilon)])
    return _weighed(values, shares).unbind()


def total_and_terms(
    outputs: Float[Tensor, "b classes"],
    labels: Int[Tensor, "b"],
    clip_logits: Float[Tensor, "b classes"],
    shares: Float[Tensor, "3 b"],
    *,
    temperature: float,
    epsilon: float,
    clean_nll: Float[Tensor, "b"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "3"]]:
    """Compute the sum of the loss' three parts, and the parts, detached; float32.

    It is the loss of :func:`terms_by_share`, quicker where neither a compiler nor torch.func looks
    on.

    Args:
        outputs: the trained model's logits, float32.
        labels: the given labels.
        clip_logits: the teacher's logits, float32.
        shares: from :func:`weighed_shares`.
        temperature: T, softens both distributions of the guidance.
        epsilon: keeps the unlearning bounded.
        clean_nll: a loss of each sample in place of the cross entropy.
    """
    own = None
    if clean_nll is not None:
        own = _weighed(clean_nll, shares[0])
        shares = torch.cat([torch.zeros_like(shares[:1]), shares[1:]])
    numbers = outputs, labels, clip_logits, shares, temperature, epsilon
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        terms = torch.stack(_plain_sums(*numbers))
        total, terms = terms.sum(), terms.detach()
    else:
        total, terms = _Total.apply(*numbers)
    if own is None:
        return total, terms
    return total + own, torch.cat([own.detach()[None], terms[1:]])


class _Total(torch.autograd.Function):
    """The sum of :func:`_plain_sums` with the gradient written out: a third of the kernels.

    With ``p`` the softmax of the outputs, ``q`` that of the outputs over T, ``c`` the teacher's,
    and shares s: ``dL/do = (s_clean - s_unlearning p_y / (p_y + epsilon)) (p - e_y)
    + s_guidance (q - c) / T``.
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, labels: Tensor, clip_logits: Tensor, shares: Tensor,
        t: float, epsilon: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        log_p = torch.log_softmax(outputs, dim=1)
        softened = log_p if t == 1 else torch.log_softmax(outputs / t, dim=1)
        teacher = torch.log_softmax(clip_logits if t == 1 else clip_logits / t, dim=1)
        label = labels[:, None]
        of_label = log_p.gather(1, label).squeeze(1)
        taught, p_label = teacher.exp(), of_label.exp()
        bounded = p_label + epsilon
        kl = teacher.sub_(softened).mul_(taught).sum(dim=1)
        terms = _weighed(torch.stack([-of_label, kl, torch.log(bounded)]), shares)
        if ctx.needs_input_grad[0]:
            clean, guidance, unlearning = shares.unsqueeze(2)
            pull = clean.addcmul(unlearning, (p_label / bounded)[:, None], value=-1)
            if t == 1:  # p and q are the same
                gradient = log_p.exp_().mul_(pull + guidance)
            else:
                gradient = log_p.exp_().mul_(pull).addcmul_(softened.exp_(), guidance, value=1 / t)
            gradient.addcmul_(taught, guidance, value=-1 / t)
            gradient.scatter_add_(1, label, -pull)
            ctx.save_for_backward(gradient, outputs, labels, clip_logits, shares)
            ctx.numbers = t, epsilon
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, outputs, *rest = ctx.saved_tensors
        if torch.is_grad_enabled():  # by create_graph: the gradient is to be differentiated, too
            total = torch.stack(_plain_sums(outputs, *rest, *ctx.numbers)).sum()
            (again,) = torch.autograd.grad(total, outputs, of_total, create_graph=True)
            return again, None, None, None, None, None
        return gradient * of_total, None, None, None, None, None
