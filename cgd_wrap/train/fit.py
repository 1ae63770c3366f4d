"""``guard.fit``: a small training loop with Accelerate, for users without a loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cgd_wrap.config import CGDConfig
from cgd_wrap.errors import TrainingDivergedError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.supported import check_trainable
from cgd_wrap.randomness import plain_torch
from cgd_wrap.train.checkpoint import FitCheckpoint, run_of
from cgd_wrap.train.epochs import EpochRecord, Epochs, GoodWeights
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.protection import Protection
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = escaped_logger(__name__)


@plain_torch(dtype=None)
def fit_guarded(
    model: nn.Module,
    protection: Protection,
    accelerator: Accelerator | None,
    stopping: CleanAccuracyStopping | None,
    *,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    num_workers: int = 0,
    on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Train a model in place by :func:`fit`, on the samples and with the loss of a protection.

    Args:
        model: image batch -> logits.
        protection: samples, loss and configuration.
        accelerator: device, processes, mixed precision. None: one of the configuration's precision.
        stopping: the stopping rule, or None.
        checkpoint_dir: folder of the checkpoint. None: no checkpoint is written.
        resume: go on from the checkpoint, if there is one; otherwise it is deleted.
        num_workers: number of processes that read samples.
        on_epoch: as for :func:`fit`.
        progress: draw a bar on the main process.

    Raises:
        TrainingDivergedError: as for :func:`fit`.
        CacheMismatchError: the checkpoint is of another training; the fields are named.
        ValueError: a setting isn't one of the training.
    """
    from accelerate import Accelerator

    check_trainable(unwrapped(model))
    config, dataset = protection.config, protection.dataset
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    batch_size = max(1, config.batch_size // accelerator.num_processes)
    plain: DataLoader[Any] = DataLoader(
        dataset.base, batch_size=batch_size, num_workers=num_workers
    )
    loader, criterion = protection.protect(plain, None, config.epochs)
    if stopping is None and config.tolerance is not None:
        logger.warning(
            "tolerance=%s has no effect: no clean sample is held out (holdout_fraction=%s), and "
            "there is no validation_loader.",
            config.tolerance, protection.result.config.holdout_fraction,
        )  # fmt: skip
    checkpoint = None
    if checkpoint_dir is not None:
        run = run_of(protection, unwrapped(model), accelerator.num_processes)
        checkpoint = FitCheckpoint(checkpoint_dir, run, resume=resume)
    return fit(
        model, loader, criterion, config, accelerator, stopping=stopping,
        image_key=dataset.layout.image, label_key=dataset.layout.label,
        checkpoint=checkpoint, on_epoch=on_epoch, progress=progress,
    )  # fmt: skip


def fit(
    model: nn.Module,
    loader: DataLoader[Any],
    criterion: CGDLoss,
    config: CGDConfig,
    accelerator: Accelerator,
    *,
    stopping: CleanAccuracyStopping | None = None,
    image_key: int | str = 0,
    label_key: int | str = 1,
    checkpoint: FitCheckpoint | None = None,
    on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Train a model in place with the guarded loss, by SGD with the configuration's numbers.

    Args:
        model: image batch -> logits.
        loader: loader of tagged batches, not yet prepared by Accelerate.
        criterion: the guarded loss.
        config: epochs, learning rate, momentum, weight decay, schedule.
        accelerator: device, processes, mixed precision.
        stopping: rule that ends training early, and restores the last weights that it accepted.
        image_key: position or key of the images in a batch.
        label_key: position or key of the targets in a batch.
        checkpoint: written after each epoch but the last; an interrupted training goes on from it.
        on_epoch: called after each epoch, on every process, with its record and the model.
        progress: draw a bar on the main process.

    Returns:
        The records of all epochs, also of those before an interruption.

    Raises:
        TrainingDivergedError: a loss, gradient or weight is NaN or infinite, or a loss beyond
            ``MOST_NATS``. The model has the weights of the last epoch that the stopping rule
            accepted again; without a rule, those of the last finite epoch; without one, those from
            before.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )  # fmt: skip
    prepared: tuple[Any, Any, Any] = accelerator.prepare(model, optimizer, loader)
    trained = prepared[0]
    history = [
        EpochRecord(**record)
        for record in (checkpoint.load(*prepared, accelerator) if checkpoint else [])
    ]
    if stopping and history:
        stopping.go_on([_accuracy(record) for record in history], trained)
    training = Epochs(*prepared, criterion, config, accelerator, (image_key, label_key))
    good = GoodWeights(trained, stopping)
    bar = tqdm(
        total=training.steps * config.epochs, initial=training.steps * len(history), desc="repair",
        unit="step", disable=not (progress and accelerator.is_main_process),
    )  # fmt: skip
    try:
        with bar:
            for epoch in range(len(history), config.epochs):
                record = training.run(epoch, bar, stopping)
                good.keep(trained)
                history.append(record)
                if on_epoch:
                    on_epoch(record, unwrapped(trained))
                bar.set_postfix(loss=f"{record.loss:.3f}")
                if stopping and stopping.rule.stopped:
                    break
                if checkpoint and epoch + 1 < config.epochs:
                    checkpoint.save(*prepared, accelerator, [r.as_dict() for r in history])
    except TrainingDivergedError:
        good.put_back(trained)
        if checkpoint:
            checkpoint.delete(accelerator)
        raise
    finally:
        accelerator.unwrap_model(trained, keep_fp32_wrapper=False)  # takes autocast off forward()
        model.eval()
    if stopping:
        stopping.restore(trained)
    if checkpoint:
        checkpoint.delete(accelerator)
    return history


def _accuracy(record: EpochRecord) -> float:
    """The accuracy that the stopping rule saw after an epoch."""
    assert record.held_out_accuracy is not None
    return record.held_out_accuracy
