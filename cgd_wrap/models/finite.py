"""Noticing that a training's numbers have stopped being numbers, without waiting for a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cgd_wrap.errors import TrainingDivergedError

NEVER = torch.iinfo(torch.int64).max
LOOK_EVERY = 50  # steps between looks at a GPU, as each look waits for it
# From here on, neighbouring fp32 numbers are more than a nat apart: a loss of that size is no
# measure of anything, and the outputs that it comes from are nothing but rounding.
MOST_NATS = 2.0**24


class FirstBadStep:
    """The first step in which a watched number was NaN or too large, kept on the device.

    Args:
        limits: name of each number -> the size that it must stay below; infinity: be finite.
        device: device of the numbers.
    """

    def __init__(self, limits: Mapping[str, float], device: torch.device) -> None:
        self.names = list(limits)
        self._limits = torch.tensor(list(limits.values()), dtype=torch.float32, device=device)
        self._first = torch.full((len(self.names),), NEVER, dtype=torch.int64, device=device)

    def see(self, step: int, *numbers: Float[Tensor, ""]) -> None:
        """Take in the numbers of a step, in the order of the names; waits for nothing."""
        values = torch.stack([number.detach().float() for number in numbers])
        bad = ~(values.abs() < self._limits)  # a comparison with NaN is never true
        self._first = torch.where(bad & (self._first == NEVER), step, self._first)

    def look(self, over_processes: Any = None) -> tuple[str, int] | None:
        """Name and step of the number that was bad first; None if all were finite.

        Args:
            over_processes: gathers a tensor of all processes, such as ``accelerator.gather``.
        """
        first = self._first if over_processes is None else over_processes(self._first[None])
        steps = first.reshape(-1, len(self.names)).amin(dim=0).tolist()
        step = min(steps)
        return None if step == NEVER else (self.names[steps.index(step)], step)


def gradient_norm(model: nn.Module) -> Float[Tensor, ""]:
    """Norm of all gradients of a model; 0 if there is none."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def not_finite(model: nn.Module) -> set[str]:
    """Names of a model's parameters and buffers that hold NaN or infinite values."""
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    floats = {n: t.detach() for n, t in state.items() if t.is_floating_point() and t.numel()}
    if not floats:
        return set()
    device = next(iter(floats.values())).device
    finite = torch.stack([t.isfinite().all().to(device) for t in floats.values()]).tolist()
    return {name for name, good in zip(floats, finite, strict=True) if not good}


class TrainingWatch:
    """Watches the losses and the weights of a training, and refuses weights that diverged.

    Args:
        model: the model before the training. Buffers that hold infinite values by then, such as
            masks of attention, may do so.
        device: device of the losses.
        steps: number of steps of the whole training.
        epochs: number of its epochs.
    """

    def __init__(self, model: nn.Module, device: torch.device, steps: int, epochs: int) -> None:
        self.steps, self.epochs, self.done = steps, epochs, 0
        self._never_finite = not_finite(model)
        self._bad = FirstBadStep({"loss": math.inf}, device)

    def see(self, loss: Float[Tensor, ""]) -> None:
        """Take in the loss of the next step; waits for nothing."""
        self.done += 1
        self._bad.see(self.done, loss)

    def check(self, model: nn.Module) -> None:
        """Look at the trained weights; a bad loss that left them whole is no fault.

        Raises:
            TrainingDivergedError: a weight is NaN or infinite.
        """
        names = not_finite(model) - self._never_finite
        if not names:
            return
        found = self._bad.look()
        step = self.done if found is None else found[1]
        epoch = (step - 1) * self.epochs // max(self.steps, 1) + 1
        since = "" if found is None else f", as is its loss from step {step} on"
        raise TrainingDivergedError(
            f"the training of {type(model).__name__} has diverged: {sorted(names)[0]!r} is NaN or "
            f"infinite{since} (epoch {epoch} of {self.epochs}). Try a lower learning rate",
            step=step, epoch=epoch,
        )  # fmt: skip
