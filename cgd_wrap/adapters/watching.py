"""What watches a training loop that the host owns: the stopping rule, and the loss' numbers."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.finite import LOOK_EVERY, FirstBadStep
from cgd_wrap.randomness import kept_rng
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.stopping import CleanAccuracyStopping

logger = escaped_logger(__name__)


def watcher(guard: Guarded, tolerance: float | None) -> CleanAccuracyStopping | None:
    """Make the stopping rule, and try it on one sample now, not only at the end of an epoch.

    Args:
        guard: a guard that has scanned.
        tolerance: percentage points by which accuracy on the held-out part may fall below its best
            before training stops. Default: the configuration's.

    Returns:
        The stopping rule; None if no tolerance is asked for, and nothing can be measured.

    Raises:
        ValueError: a tolerance is asked for, and no sample is held out.
        TypeError: a tolerance is asked for, and the samples are no tensors that a model can take.
    """
    stopping = guard.stopping(tolerance)
    wanted = guard.config.tolerance if tolerance is None else tolerance
    if stopping is None:
        if wanted is None:
            return None
        raise ValueError(
            f"tolerance={wanted}, but no clean sample is held out to watch: raise "
            f"holdout_fraction, which is {guard.config.holdout_fraction}"
        )
    try:
        with kept_rng():
            stopping.loader.dataset[0]
    except TypeError as error:
        if wanted is not None:
            raise
        logger.warning("Held-out accuracy can't be measured: %s.", error)
        return None
    return stopping


class LossWatch:
    """Warns once, with the step, when a guarded loss is NaN or infinite; the host goes on.

    On a GPU the loss is looked at every ``LOOK_EVERY`` steps only, as each look waits for it.
    """

    def __init__(self) -> None:
        self._bad: FirstBadStep | None = None
        self._warned = False

    def see(self, step: int, loss: Float[Tensor, ""]) -> None:
        """Take in the loss of a step of the host's."""
        if self._warned:
            return
        if self._bad is None:
            self._bad = FirstBadStep({"loss": math.inf}, loss.device)
        self._bad.see(step, loss)
        if loss.device.type == "cpu" or step % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """Warn if a loss was bad so far, such as at the end of an epoch."""
        found = self._bad.look() if self._bad and not self._warned else None
        if found is not None:
            self._warned = True
            logger.warning(
                "The guarded loss is NaN or infinite since step %d: the training has diverged, and "
                "its weights repair nothing. Try a lower learning rate, or clip the gradient.",
                found[1],
            )


class CountingWatch(LossWatch):
    """A :class:`LossWatch` as a forward hook of a guarded loss, for loops without callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def __call__(self, loss: CGDLoss, inputs: Any, output: Float[Tensor, ""]) -> None:
        """Take in a loss that is trained on."""
        if loss.training and output.requires_grad:
            self._steps += 1
            self.see(self._steps, output)
