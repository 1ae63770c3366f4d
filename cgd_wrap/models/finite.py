"""Noticing that a training's numbers have stopped being numbers, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NEVER = torch.iinfo(torch.int64).max
LOOK_EVERY = 50  # steps between looks at a GPU, as each look waits for it


class FirstBadStep:
    """The first step in which a watched number wasn't finite, kept on the device.

    Args:
        names: what is watched, such as ``("loss", "gradient")``.
        device: device of the numbers.
    """

    def __init__(self, names: Collection[str], device: torch.device) -> None:
        self.names = list(names)
        self._first = torch.full((len(self.names),), NEVER, dtype=torch.int64, device=device)

    def see(self, step: int, *numbers: Float[Tensor, ""]) -> None:
        """Take in the numbers of a step, in the order of the names; waits for nothing."""
        bad = ~torch.stack([number.detach().float() for number in numbers]).isfinite()
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
