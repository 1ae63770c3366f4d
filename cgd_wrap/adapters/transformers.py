"""Guarding a Hugging Face Trainer by :func:`attach`; :class:`CGDCallback` watches the training.

::

    guard = CGDGuard(model, train_set, accelerator=trainer.accelerator, cache_dir="runs/cgd").scan()
    guard.attach(trainer)  # before trainer.train()

A model that is no ``PreTrainedModel`` must return a dict or ``ModelOutput`` with ``logits``: if a
model returns a bare tensor, the Trainer's evaluation loses the tensor's first row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.adapters.serving import balanced_samplers, check_collation, is_guarded
from cgd_wrap.adapters.trainer_loss import TrainerLoss
from cgd_wrap.adapters.watching import LossWatch, watcher
from cgd_wrap.data.layout import check_map_style
from cgd_wrap.errors import MissingExtraError
from cgd_wrap.processes import is_distributed
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.loss import Criterion
from cgd_wrap.train.sampler import BalancedSampler
from cgd_wrap.train.stopping import CleanAccuracyStopping

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "transformers") from error

ACCURACY = "cgd_held_out_accuracy"


def attach(
    guard: Guarded,
    trainer: Trainer,
    *,
    criterion: Criterion | None = None,
    tolerance: float | None = None,
) -> CGDCallback:
    """Guard a Trainer: replace its dataset, sampler and loss, and add a callback.

    Nothing else of the Trainer changes. The order of the samples follows the Trainer's
    ``data_seed`` (or else ``seed``). Call this function after ``scan()`` and before
    ``trainer.train()``.

    Args:
        guard: a guard of ``trainer.train_dataset``, which has scanned.
        trainer: a Trainer with a map-style dataset, and with ``compute_loss`` of the Trainer class.
        criterion: criterion of clean samples and of evaluation. Default: cross entropy, with the
            Trainer's ``label_smoothing_factor``.
        tolerance: percentage points by which accuracy on the held-out part may fall below its best
            before training stops. Default: the configuration's.

    Returns:
        The callback that was added.

    Raises:
        TypeError: the Trainer computes its loss or draws its samples in a way of its own, or the
            dataset is a stream.
        ValueError: the Trainer's dataset isn't the guard's, the Trainer has a
            ``compute_loss_func`` already, or smooths labels beside a given criterion.
    """
    _check(guard, trainer, criterion)
    smoothing = trainer.args.label_smoothing_factor
    loss = TrainerLoss(guard.loss(criterion or nn.CrossEntropyLoss(label_smoothing=smoothing)))
    seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    sampler = guard.sampler(seed)
    callback = CGDCallback(guard, loss, sampler, watcher(guard, tolerance), trainer.log)
    trainer.train_dataset = guard.dataset
    trainer.compute_loss_func = loss
    trainer._get_train_sampler = lambda train_dataset=None: sampler
    # In front of the callbacks that report logs, such as TensorBoard's: on_log adds to the logs.
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


class CGDCallback(TrainerCallback):  # type: ignore[misc]
    """Watches a guarded Trainer, logs the loss' parts, and may end the training.

    :func:`attach` makes the callback, since no callback can install the loss itself. The callback

    - checks at the start that the loader serves the guarded samples in the guard's order;
    - sets the sampler's epoch;
    - adds ``cgd_clean``, ``cgd_guidance`` and ``cgd_unlearning`` to the training logs, in nats;
      their sum is the loss;
    - logs ``cgd_held_out_accuracy``, in [0, 1], after each epoch;
    - ends training when the stopping rule says so, and then puts the last accepted weights back;
    - warns once if the loss is NaN or infinite.

    Args:
        guard: a guard that has scanned.
        loss: the loss that the Trainer calls.
        sampler: the sampler that the Trainer draws by.
        stopping: the stopping rule, or None.
        log: the Trainer's ``log``.

    Attributes:
        stopping: the stopping rule of the current run, or None; its ``history`` holds the
            accuracies.
    """

    def __init__(
        self,
        guard: Guarded,
        loss: TrainerLoss,
        sampler: BalancedSampler,
        stopping: CleanAccuracyStopping | None,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.guard, self.loss, self.sampler = guard, loss, sampler
        self.stopping, self.log = stopping, log
        self._epoch = self._logged_step = 0
        self._watch = LossWatch()

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        train_dataloader: Any = None,
        **others: Any,
    ) -> None:
        """Check the loader; in a resumed run, find the epoch and the accuracies so far."""
        self._check_loader(train_dataloader)
        self.sampler.set_run(state.num_train_epochs)
        batches, steps = len(train_dataloader), args.gradient_accumulation_steps
        self._epoch = state.global_step // max(1, -(-batches // steps))
        self._logged_step = state.global_step
        self.loss.take_sums()
        self._watch = LossWatch()
        if self.stopping is not None:
            history = [log[ACCURACY] for log in state.log_history if ACCURACY in log]
            self.stopping = self.stopping.resumed(history, model)
            control.should_training_stop |= self.stopping.rule.stopped

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Set the sampler's epoch, which some versions don't do while batches are skipped."""
        self.sampler.set_epoch(self._epoch)
        self._epoch += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the loss' numbers."""
        if (loss := self.loss.sum) is not None:
            self._watch.see(state.global_step, loss)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any
    ) -> None:
        """Add the loss' parts to a training log, and to the Trainer's own copy of the log."""
        if logs is None or "loss" not in logs:
            return
        sums, steps = self.loss.take_sums(), state.global_step - self._logged_step
        self._logged_step = state.global_step
        if sums is None or steps < 1:
            return
        names = ("cgd_clean", "cgd_guidance", "cgd_unlearning")
        added = dict(zip(names, (_as_logged(sums, args) / steps).tolist(), strict=True))
        if self.loss.loss.untagged_batches:
            added["cgd_untagged_batches"] = self.loss.loss.untagged_batches
        logs.update(added)
        state.log_history[-1].update(added)

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        """Measure held-out accuracy, and end training if the stopping rule says so."""
        self._watch.look()
        if self.stopping is None:
            return
        if self.stopping.step(model):
            self.stopping.restore(model)
            control.should_training_stop = True
        self.log({ACCURACY: self.stopping.history[-1]})

    def _check_loader(self, loader: Any) -> None:
        if not is_guarded(loader, self.guard) or self.sampler not in balanced_samplers(loader):
            raise ValueError(
                f"the Trainer loads {type(getattr(loader, 'dataset', None)).__name__} in an order "
                "of its own, not what guard.attach gave it. Don't set train_dataset after "
                "attach, and don't override get_train_dataloader"
            )
        check_collation(loader, self.guard, "labels")


def _as_logged(sums: Float[Tensor, "3"], args: Any) -> Float[Tensor, "3"]:
    """Scale sums as the Trainer scales its own logged loss: a factor, a mean over processes."""
    if getattr(args, "average_tokens_across_devices", False):
        sums = sums * (args.n_gpu if args.n_gpu > 1 else args.world_size)
    if is_distributed():
        dist.all_reduce(sums)
        sums = sums / dist.get_world_size()
    return sums


def _check(guard: Guarded, trainer: Trainer, criterion: Criterion | None) -> None:
    """Refuse a Trainer that would ignore the guard, or a setting that the guard would ignore."""
    given = trainer.train_dataset
    if isinstance(given, GuardedDataset):
        raise ValueError("this Trainer is guarded already: call attach once")
    if given is not guard.base:
        if given is not None and not isinstance(given, Mapping):
            check_map_style(given)
        raise ValueError(
            f"the Trainer's train_dataset ({type(given).__name__}) is not the one that this "
            f"guard was made for ({type(guard.base).__name__}). Make the guard for "
            "trainer.train_dataset"
        )
    for name, cure in (
        ("compute_loss", "remove it, and pass its criterion: attach(trainer, criterion=...)"),
        ("_get_train_sampler", "remove it: the guard decides how often samples are drawn"),
    ):
        if name in vars(trainer) or getattr(type(trainer), name) is not getattr(Trainer, name):
            raise TypeError(
                f"{type(trainer).__name__} has a {name} of its own, which can't be guarded; {cure}"
            )
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "the Trainer has a compute_loss_func, which the guard would replace: leave it out, and "
            "pass what it computes as attach(trainer, criterion=...), a function of logits [B, C] "
            "and labels [B]"
        )
    if criterion is not None and trainer.args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={trainer.args.label_smoothing_factor} has no effect on a "
            "criterion of yours: set it to 0, and smooth labels in the criterion"
        )
