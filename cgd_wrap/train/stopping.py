"""Stopping a training when accuracy falls on held-out clean data, which are no test data."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.prediction import predict_with_labels

logger = escaped_logger(__name__)


class ToleranceRule:
    """Stop when accuracy has fallen more than ``tolerance`` points below its best.

    Args:
        tolerance: percentage points, > 0; None never stops.

    Attributes:
        best: highest accuracy so far, in [0, 1].
        stopped: whether the rule has fired; it stays fired.
    """

    def __init__(self, tolerance: float | None) -> None:
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be above 0 percentage points, got {tolerance}")
        self.tolerance = math.inf if tolerance is None else tolerance
        self.best = 0.0
        self.stopped = False

    def update(self, accuracy: float) -> bool:
        """Take in an epoch's accuracy, in [0, 1]; returns True if training should stop."""
        self.best = max(self.best, accuracy)
        self.stopped = self.stopped or (self.best - accuracy) * 100 > self.tolerance
        return self.stopped


class CleanAccuracyStopping:
    """Measures a model on held-out data, applies the tolerance rule, and keeps accepted weights.

    The last accepted weights are restored, not the weights of the highest accuracy: unlearning
    costs accuracy at first, so that the highest may belong to the least repaired model.

    Args:
        loader: held-out batches with ordinary labels.
        tolerance: as for :class:`ToleranceRule`.

    Attributes:
        history: accuracy after each call of :meth:`step`, in [0, 1].
    """

    def __init__(self, loader: DataLoader[Any], tolerance: float | None) -> None:
        self.loader = loader
        self.rule = ToleranceRule(tolerance)
        self.history: list[float] = []
        self._accepted: dict[str, Tensor] | None = None

    def step(self, model: nn.Module) -> bool:
        """Measure a model after an epoch; returns True if training should stop.

        Every process measures the whole loader, so that all processes come to the same answer.
        """
        predictions, labels = predict_with_labels(unwrapped(model), self.loader)
        accuracy = float((predictions == labels).double().mean())
        self.history.append(accuracy)
        if self.rule.update(accuracy):
            logger.info(
                "Clean accuracy %.2f%% is more than %.2f points below its best, %.2f%%: stop.",
                100 * accuracy, self.rule.tolerance, 100 * self.rule.best,
            )  # fmt: skip
            return True
        self._accept(model)
        return False

    def resumed(self, history: Sequence[float], model: nn.Module) -> CleanAccuracyStopping:
        """Copy the rule, for the start of a run or for going on with an interrupted run.

        Args:
            history: accuracies of the run so far, in [0, 1]; empty at the start of a run.
            model: holds the weights that the run goes on from, which count as accepted.
        """
        rule = CleanAccuracyStopping(self.loader, self.rule.tolerance)
        rule.go_on(history, model)
        return rule

    def go_on(self, history: Sequence[float], model: nn.Module) -> None:
        """Take over the accuracies of an interrupted run, as :meth:`resumed` does, in place."""
        for accuracy in history:
            self.history.append(accuracy)
            self.rule.update(accuracy)
        if history:
            self._accept(model)

    def _accept(self, model: nn.Module) -> None:
        state = unwrapped(model).state_dict()
        self._accepted = {n: t.detach().to("cpu", copy=True) for n, t in state.items()}

    def restore(self, model: nn.Module) -> None:
        """Put back the last accepted weights, if the rule has fired."""
        if self.rule.stopped:
            self.put_back(model)

    def put_back(self, model: nn.Module) -> bool:
        """Put back the last accepted weights; returns whether there are any."""
        if self._accepted is None:
            return False
        with torch.no_grad():
            unwrapped(model).load_state_dict(copy.copy(self._accepted))
        return True
