"""The epochs of ``guard.fit``: their steps, their records, and what is done if they diverge."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cgd_wrap.config import CGDConfig
from cgd_wrap.errors import TrainingDivergedError
from cgd_wrap.models.finite import LOOK_EVERY, MOST_NATS, FirstBadStep, gradient_norm, not_finite
from cgd_wrap.models.outputs import logits_of, unwrapped
from cgd_wrap.models.prediction import fitted
from cgd_wrap.models.schedule import set_rate
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class EpochRecord:
    """The figures of an epoch of :func:`cgd_wrap.train.fit.fit`.

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


@dataclass(eq=False)
class Epochs:
    """The steps of a training, epoch by epoch.

    Attributes:
        trained: the model, prepared by Accelerate, as are optimiser and loader.
        optimizer: its optimiser.
        loader: loader of tagged batches.
        criterion: the guarded loss.
        config: the numbers of the training.
        accelerator: device, processes, mixed precision.
        keys: positions or keys of the images and of the targets in a batch.
    """

    trained: nn.Module
    optimizer: Any
    loader: Any
    criterion: CGDLoss
    config: CGDConfig
    accelerator: Accelerator
    keys: tuple[int | str, int | str]
    _bad: FirstBadStep = field(init=False)
    _never_finite: set[str] = field(init=False)

    def __post_init__(self) -> None:
        limits = {"loss": MOST_NATS, "gradient": math.inf}
        self._bad = FirstBadStep(limits, self.accelerator.device)
        self._never_finite = not_finite(unwrapped(self.trained))  # such as masks of attention

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return min(len(self.loader), self.config.max_batches_per_epoch or len(self.loader))

    def run(self, epoch: int, bar: Any, stopping: CleanAccuracyStopping | None) -> EpochRecord:
        """Train for an epoch, and let the stopping rule measure the model.

        Args:
            epoch: number of the epoch, from 0.
            bar: progress bar of the steps.
            stopping: the stopping rule, or None.

        Raises:
            TrainingDivergedError: a loss, gradient or weight isn't a usable number.
        """
        started = time.perf_counter()
        self.trained.train()
        self.criterion.train()
        sums = torch.zeros(3, device=self.accelerator.device, dtype=torch.float32)
        self.loader.set_epoch(epoch)
        for step, batch in enumerate(self.loader):
            if step == self.steps:
                break
            self._step(epoch * self.steps + step + 1, batch)
            sums += torch.stack(list(self._terms()))
            bar.update()
        self._check_weights(epoch)
        seconds = time.perf_counter() - started
        if stopping:
            stopping.step(self.trained)
        mean = self.accelerator.reduce(sums, "mean") / self.steps
        clean, guidance, unlearning = mean.tolist()
        return EpochRecord(
            epoch=epoch + 1,
            loss=clean + guidance + unlearning,
            clean=clean,
            guidance=guidance,
            unlearning=unlearning,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            held_out_accuracy=stopping.history[-1] if stopping else None,
            seconds=seconds,
        )

    def _step(self, number: int, batch: Any) -> None:
        config, accelerator = self.config, self.accelerator
        done = number / (config.epochs * self.steps)
        # Without the warm-up, momentum throws a converged model far off at first.
        set_rate(self.optimizer, config.learning_rate, config.lr_schedule, done)
        images, targets = (batch[key] for key in self.keys)
        with accelerator.autocast():
            outputs = logits_of(self.trained(fitted(images, self.trained)))
        loss = self.criterion(outputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        if config.max_gradient_norm is not None:
            norm = accelerator.clip_grad_norm_(self.trained.parameters(), config.max_gradient_norm)
        else:
            norm = gradient_norm(self.trained)
        # A scaler looks for overflows of its own making, skips the step, and scales less.
        self._bad.see(number, loss, torch.zeros_like(loss) if accelerator.scaler else norm)
        alone_on_cpu = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        if alone_on_cpu or number % LOOK_EVERY == 0:
            self._check_steps()
        self.optimizer.step()

    def _terms(self) -> tuple[Float[Tensor, ""], ...]:
        assert self.criterion.last_terms is not None
        return tuple(self.criterion.last_terms)

    def _check_steps(self) -> None:
        several = self.accelerator.num_processes > 1
        found = self._bad.look(self.accelerator.gather if several else None)
        if found is not None:
            what, step = found
            beyond = f", or beyond {MOST_NATS:.0e} nats" if what == "loss" else ""
            raise self._diverged(f"the {what} of step {step} is NaN or infinite{beyond}", step)

    def _check_weights(self, epoch: int) -> None:
        """At the end of an epoch: the steps' numbers, then the weights that they came to."""
        self._check_steps()
        bad = not_finite(unwrapped(self.trained)) - self._never_finite
        if bad:
            step = (epoch + 1) * self.steps
            name = sorted(bad)[0]
            raise self._diverged(f"by step {step}, {name!r} holds NaN or infinite values", step)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        config, epoch = self.config, (step - 1) // self.steps + 1
        norm = config.max_gradient_norm
        tries = [f"a lower learning_rate than {config.learning_rate}"]
        tries.append(f"max_gradient_norm={1.0 if norm is None else norm / 10:g} instead of {norm}")
        if self.accelerator.mixed_precision == "fp16":
            tries.append('mixed_precision="bf16" or "no"')
        return TrainingDivergedError(
            f"the training has diverged: {what} (epoch {epoch} of {config.epochs}). The model has "
            f"its last good weights again. What may help: {', or '.join(tries)}.",
            step=step, epoch=epoch,
        )  # fmt: skip


class GoodWeights:
    """The weights to go back to if a training diverges.

    Args:
        model: holds the weights from before the training.
        stopping: the stopping rule, which keeps the weights that it accepted; or None.
    """

    def __init__(self, model: nn.Module, stopping: CleanAccuracyStopping | None) -> None:
        self.stopping = stopping
        self._weights = _copied(model)

    def keep(self, model: nn.Module) -> None:
        """Keep the weights after a finite epoch; with a stopping rule, that is up to the rule."""
        if self.stopping is None:
            self._weights = _copied(model)

    def put_back(self, model: nn.Module) -> None:
        """Give a model the last good weights."""
        if self.stopping is None or not self.stopping.put_back(model):
            unwrapped(model).load_state_dict(self._weights)


def _copied(model: nn.Module) -> dict[str, Any]:
    """Copy a model's state to the CPU."""
    state = unwrapped(model).state_dict()
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
