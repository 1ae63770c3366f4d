"""Recording a training as BackdoorBench does: a row of figures per epoch, and checkpoints."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cgd_wrap.backdoorbench.measuring import BenchData
from cgd_wrap.backdoorbench.writing import write_tensors
from cgd_wrap.train.epochs import EpochRecord


class EpochRows:
    """Measures the model on the test sets after each epoch; the figures decide nothing.

    Args:
        data: the test sets.
        checkpoint: file that the model is saved to.
        save_every: epochs between checkpoints; 0 is never.

    Attributes:
        rows: figures of each epoch, for ``<method>_df.csv``; epochs count from 0, as
            BackdoorBench's do.
    """

    def __init__(self, data: BenchData, checkpoint: Path, save_every: int = 0) -> None:
        self.data, self.checkpoint, self.save_every = data, checkpoint, save_every
        self.rows: list[dict[str, float | None]] = []

    def __call__(self, record: EpochRecord, model: nn.Module) -> None:
        """Measure after an epoch: pass this object as ``on_epoch`` of ``CGDGuard.fit``."""
        self.rows.append(
            {
                "epoch": record.epoch - 1,
                "train_epoch_loss_avg_over_batch": record.loss,
                "train_clean_loss": record.clean,
                "train_guidance_loss": record.guidance,
                "train_unlearning_loss": record.unlearning,
                "learning_rate": record.learning_rate,
                "held_out_acc": record.held_out_accuracy,
                **self.data.measure(model).as_row(),
            }
        )
        if self.save_every and record.epoch % self.save_every == 0:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            on_cpu = {name: value.detach().cpu() for name, value in model.state_dict().items()}
            write_tensors(self.checkpoint, {"model": on_cpu, "epoch_current": record.epoch})
