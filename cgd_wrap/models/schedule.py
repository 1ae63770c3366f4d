"""Learning rate schedules of the library's own training loops."""

from __future__ import annotations

import math

import torch

WARM_UP = 0.1  # share of the steps


def set_rate(optimizer: torch.optim.Optimizer, highest: float, schedule: str, done: float) -> None:
    """Set the learning rate of all parameters for the next step.

    Args:
        optimizer: the optimiser whose rate is set.
        highest: highest learning rate of the schedule.
        schedule: ``"constant"``, or ``"cosine"``: a warm-up over the first tenth of the steps, then
            half a cosine down to 0.
        done: share of all steps that are done once the next step is, in (0, 1].
    """
    factor = 1.0
    if schedule == "cosine":
        rest = max(0.0, (done - WARM_UP) / (1 - WARM_UP))
        factor = min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * rest)))
    for group in optimizer.param_groups:
        group["lr"] = highest * factor
