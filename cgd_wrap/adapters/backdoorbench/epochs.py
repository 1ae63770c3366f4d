"""BackdoorBench's record of a training: a row of figures per epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from cgd_wrap.adapters.backdoorbench.measuring import BenchData, BenchFigures
from cgd_wrap.adapters.backdoorbench.writing import write_tensors
from cgd_wrap.model_outputs import unwrapped
from cgd_wrap.stopping import CleanAccuracyStopping
from cgd_wrap.training import EpochRecord


class MeasuredEpochs(CleanAccuracyStopping):
    """The stopping rule, which also measures the test sets after each epoch.

    These figures are recorded and decide nothing.

    Args:
        inner: the rule that decides, on held-out data; None never stops.
        data: the test sets.
        checkpoint: where the model goes every ``save_every`` epochs.
        save_every: 0 is never.

    Attributes:
        figures: of each epoch.
        history: held-out accuracy after each epoch, in [0, 1]; NaN without held-out data.
    """

    def __init__(
        self,
        inner: CleanAccuracyStopping | None,
        data: BenchData,
        checkpoint: Path,
        save_every: int = 0,
    ) -> None:
        self.inner, self.data = inner, data
        self.checkpoint, self.save_every = checkpoint, save_every
        self.figures: list[BenchFigures] = []
        self.history: list[float] = []

    def step(self, model: nn.Module) -> bool:
        """Measure after an epoch; True if training should stop."""
        stop = self.inner.step(model) if self.inner else False
        self.history.append(self.inner.history[-1] if self.inner else math.nan)
        self.figures.append(self.data.measure(unwrapped(model)))
        if self.save_every and len(self.figures) % self.save_every == 0:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = unwrapped(model).state_dict()
            on_cpu = {name: value.detach().cpu() for name, value in state.items()}
            write_tensors(self.checkpoint, {"model": on_cpu, "epoch_current": len(self.figures)})
        return stop

    def restore(self, model: nn.Module) -> None:
        """Put back the last accepted weights, if the rule has fired."""
        if self.inner:
            self.inner.restore(model)


def history_rows(
    records: list[EpochRecord], figures: list[BenchFigures]
) -> list[dict[str, float | None]]:
    """Rows for ``<method>_df.csv``; epochs count from 0, as BackdoorBench's do."""
    pairs = zip(records, figures, strict=True)
    return [_row(record.as_dict(), measured) for record, measured in pairs]


def _row(
    record: Mapping[str, float | int | None], figures: BenchFigures
) -> dict[str, float | None]:
    epoch, held_out = record["epoch"], record["held_out_accuracy"]
    assert epoch is not None
    return {
        "epoch": epoch - 1,
        "train_epoch_loss_avg_over_batch": record["loss"],
        "train_clean_loss": record["clean"],
        "train_guidance_loss": record["guidance"],
        "train_unlearning_loss": record["unlearning"],
        "learning_rate": record["learning_rate"],
        "held_out_acc": None if held_out is None or math.isnan(held_out) else held_out,
        **figures.as_row(),
    }
