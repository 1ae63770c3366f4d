"""``guard.fit``: a small training loop with Accelerate, for users without a loop of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cgd_wrap.config import CGDConfig
from cgd_wrap.models.outputs import logits_of, unwrapped
from cgd_wrap.models.schedule import set_rate
from cgd_wrap.models.supported import check_trainable
from cgd_wrap.randomness import plain_torch
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.protection import Protection
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """The figures of an epoch of :func:`fit`.

    Attributes:
        epoch: number of the epoch, from 1.
        loss: mean of the whole loss, nats.
        clean: mean of the loss' clean part, nats.
        guidance: mean of the loss' guidance part, times its weight.
        unlearning: mean of the loss' unlearning part, times its weight (negative).
        learning_rate: learning rate at the end of the epoch.
        held_out_accuracy: accuracy on the held-out part, in [0, 1]; None without a stopping rule.
        seconds: duration of the training, without measuring the accuracy.
    """

    epoch: int
    loss: float
    clean: float
    guidance: float
    unlearning: float
    learning_rate: float
    held_out_accuracy: float | None
    seconds: float

    def as_dict(self) -> dict[str, float | int | None]:
        """The record as JSON values."""
        return asdict(self)


@plain_torch(dtype=None)
def fit_guarded(
    model: nn.Module,
    protection: Protection,
    accelerator: Accelerator | None,
    view: Any,
    *,
    validation_loader: DataLoader[Any] | None = None,
    num_workers: int = 0,
    on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Train a model in place by :func:`fit`, on the samples and with the loss of a protection.

    Args:
        model: image batch -> logits.
        protection: samples, loss and configuration.
        accelerator: device, processes, mixed precision. None: one of the configuration's precision.
        view: ``[i] -> image tensor``, as the model is evaluated: for the held-out part.
        validation_loader: clean data for the stopping rule. Default: the held-out part.
        num_workers: number of processes that read samples.
        on_epoch: as for :func:`fit`.
        progress: draw a bar on the main process.
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
    if validation_loader is not None:
        stopping: CleanAccuracyStopping | None = CleanAccuracyStopping(
            validation_loader, config.tolerance
        )
    else:
        stopping = protection.held_out_stopping(config.tolerance, view, num_workers=num_workers)
    if stopping is None and config.tolerance is not None:
        logger.warning(
            "tolerance=%s has no effect: no clean sample is held out (holdout_fraction=%s), and "
            "there is no validation_loader.",
            config.tolerance, protection.result.config.holdout_fraction,
        )  # fmt: skip
    return fit(
        model, loader, criterion, config, accelerator, stopping=stopping,
        image_key=dataset.layout.image, label_key=dataset.layout.label,
        on_epoch=on_epoch, progress=progress,
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
        on_epoch: called after each epoch, on every process, with its record and the model.
        progress: draw a bar on the main process.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )  # fmt: skip
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = min(len(loader), config.max_batches_per_epoch or len(loader))
    history: list[EpochRecord] = []
    bar = tqdm(
        total=steps * config.epochs, desc="repair", unit="step",
        disable=not (progress and accelerator.is_main_process),
    )  # fmt: skip
    with bar:
        for epoch in range(config.epochs):
            started = time.perf_counter()
            trained.train()
            criterion.train()
            sums = torch.zeros(3, device=accelerator.device, dtype=torch.float32)
            for step, batch in enumerate(loader):
                if step == steps:
                    break
                done = (epoch * steps + step + 1) / (config.epochs * steps)
                # Without the warm-up, momentum throws a converged model far off at first.
                set_rate(optimizer, config.learning_rate, config.lr_schedule, done)
                with accelerator.autocast():
                    outputs = logits_of(trained(batch[image_key]))
                loss = criterion(outputs, batch[label_key])
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                if config.max_gradient_norm is not None:
                    accelerator.clip_grad_norm_(trained.parameters(), config.max_gradient_norm)
                optimizer.step()
                sums += _terms(criterion)
                bar.update()
            seconds = time.perf_counter() - started
            stop = stopping.step(trained) if stopping else False
            mean = accelerator.reduce(sums, "mean") / steps
            record = _record(epoch, mean, optimizer, seconds, stopping)
            history.append(record)
            if on_epoch:
                on_epoch(record, unwrapped(trained))
            bar.set_postfix(loss=f"{record.loss:.3f}")
            if stop:
                break
    if stopping:
        stopping.restore(trained)
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)  # takes autocast off forward()
    model.eval()
    return history


def _terms(criterion: CGDLoss) -> Tensor:
    assert criterion.last_terms is not None
    return torch.stack(list(criterion.last_terms))


def _record(
    epoch: int,
    terms: Tensor,
    optimizer: torch.optim.Optimizer,
    seconds: float,
    stopping: CleanAccuracyStopping | None,
) -> EpochRecord:
    clean, guidance, unlearning = terms.tolist()
    return EpochRecord(
        epoch=epoch + 1,
        loss=clean + guidance + unlearning,
        clean=clean,
        guidance=guidance,
        unlearning=unlearning,
        learning_rate=optimizer.param_groups[0]["lr"],
        held_out_accuracy=stopping.history[-1] if stopping else None,
        seconds=seconds,
    )
