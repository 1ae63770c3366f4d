"""Optimising labels so that training on clean images follows training on triggered ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cgd_wrap.attacks.choosing import shuffled
from cgd_wrap.attacks.surrogate import Material, batch_starts, shifted

_ORDER_STREAM = 104
_START = 5.0  # logit of the given label at the start, all others 0: one_hot_temp of the authors
_STEP = 0.5  # length of a step on a batch's logits, per square root of the batch's size
_REACH = 0.01  # step of a finite difference, as a share of the weights' norm
State = dict[str, Tensor]


@dataclass(frozen=True)
class Pairs:
    """The expert's images, each with the clean image that a student sees in its place.

    Attributes:
        shown: the expert's images: all clean ones, then copies with the trigger.
        given: the expert's labels: the true ones, then the target for every copy.
        own: row of the clean image that each of the expert's images was made from.
        count: number of clean images, which come first.
    """

    shown: UInt8[Tensor, "m 3 side side"]
    given: Int64[Tensor, "m"]
    own: Int64[Tensor, "m"]
    count: int

    def batches(
        self, generator: torch.Generator, device: torch.device, size: int = 128
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Int64[Tensor, "b"]]]:
        """Yield all pairs in random order: (shown, given, clean, own), with pixels in [0, 1].

        A shown image and the clean image in its place are shifted alike.
        """
        order = torch.randperm(len(self.given), generator=generator)
        starts = batch_starts(len(order), size)
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            rows = order[start:end]
            both = torch.cat([self.shown[rows], self.shown[self.own[rows]]], dim=1)
            shown, clean = shifted(both.to(device).float() / 255, generator).split(3, dim=1)
            yield shown, self.given[rows].to(device), clean, self.own[rows]


def expert_trajectory(material: Material, pairs: Pairs, epochs: int, stops: int) -> list[State]:
    """Train a network on the expert's images; returns ``stops`` states at even distances.

    Plain SGD as in the paper: momentum 0.9 (Nesterov), weight decay 5e-4, no schedule.
    """
    network = material.network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    generator = torch.Generator().manual_seed(material.seed)
    total = epochs * len(batch_starts(len(pairs.given)))
    saved = {max(1, round(total * (stop + 1) / stops)) for stop in range(stops)}
    states, done = [], 0
    for _ in material.bar(range(epochs), "expert (epochs)"):
        for shown, given, _, _ in pairs.batches(generator, material.device):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(material.logits(shown), given).backward()
            optimizer.step()
            done += 1
            if done in saved:
                states.append({k: v.detach().clone() for k, v in network.state_dict().items()})
    return states


def matched_logits(
    material: Material, pairs: Pairs, trajectory: list[State]
) -> Float[Tensor, "count classes"]:
    """Optimise the clean images' label logits so that a student's step is like the expert's.

    At each state, each batch descends by a step of fixed length on the squared distance between
    the two gradients, ``|| grad CE(f(clean), softmax(logits)) - grad CE(f(shown), given) ||^2``
    over all weights. All pairs are passed once at each state.
    """
    generator = torch.Generator().manual_seed(material.seed)
    classes = material.num_classes
    logits = _START * F.one_hot(pairs.given[: pairs.count], classes).float()
    order = shuffled(len(trajectory), [material.seed, _ORDER_STREAM]).tolist()
    for stop in material.bar(order, "matching the expert (passes)"):
        material.network.load_state_dict(trajectory[stop])
        for shown, given, clean, own in pairs.batches(generator, material.device):
            labels = logits[own].softmax(dim=1).to(material.device)
            gap = gradient_gap(material, shown, given, clean, labels)
            slope = label_slope(labels, log_slope(material, clean, gap)).cpu()
            length = _STEP * len(own) ** 0.5 / slope.norm().clamp_min(1e-20)
            logits.index_add_(0, own, -length * slope)
    return logits


def label_slope(
    labels: Float[Tensor, "b classes"], log_slope: Float[Tensor, "b classes"]
) -> Float[Tensor, "b classes"]:
    """Gradient of the squared gap with respect to the label logits, up to a positive factor.

    Args:
        labels: softmax of the label logits.
        log_slope: change of the network's log-probabilities along the gap.
    """
    return -labels * (log_slope - (labels * log_slope).sum(dim=1, keepdim=True))


def gradient_gap(
    material: Material,
    shown: Float[Tensor, "b 3 h w"],
    given: Int64[Tensor, "b"],
    clean: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b classes"],
) -> list[Tensor]:
    """The student's gradient minus the expert's, for each weight tensor of the network."""
    student = F.cross_entropy(material.logits(clean), labels)
    expert = F.cross_entropy(material.logits(shown), given)
    weights = list(material.network.parameters())
    # Some networks have weights that take no part in the logits.
    return list(
        torch.autograd.grad(student - expert, weights, allow_unused=True, materialize_grads=True)
    )


@torch.no_grad()
def log_slope(
    material: Material, clean: Float[Tensor, "b 3 h w"], gap: list[Tensor]
) -> Float[Tensor, "b classes"]:
    """Derivative of the log-probabilities of clean images as the weights move along the gap."""
    weights = list(material.network.parameters())
    kept = [weight.clone() for weight in weights]
    reach = _REACH * _norm(weights) / _norm(gap).clamp_min(1e-20)
    ends = []
    for sign in (1, -1):
        for weight, start, move in zip(weights, kept, gap, strict=True):
            weight.copy_(start + sign * reach * move)
        ends.append(material.logits(clean).log_softmax(dim=1))
    for weight, start in zip(weights, kept, strict=True):
        weight.copy_(start)
    slope: Tensor = (ends[0] - ends[1]) / (2 * reach)
    return slope


def _norm(parts: Sequence[Tensor]) -> Tensor:
    total: Tensor = torch.stack([part.square().sum() for part in parts]).sum().sqrt()
    return total
