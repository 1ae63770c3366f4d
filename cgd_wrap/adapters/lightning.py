"""Guarding a Lightning run: loader and criterion are wrapped, and :class:`CGDCallback` watches.

::

    guard = CGDGuard(module, train_set, cache_dir="runs/cgd").scan()
    train_loader, module.criterion = guard.protect(train_loader, module.criterion)
    trainer = Trainer(callbacks=[CGDCallback(guard)])
    trainer.fit(module, train_loader)

With ``strategy="ddp"`` Lightning starts the script again for each process. If the guard has a
``cache_dir``, these processes read the scan that the first process has made.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DistributedSampler

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.adapters.serving import balanced_samplers, is_guarded
from cgd_wrap.adapters.watching import LossWatch, watcher
from cgd_wrap.errors import MissingExtraError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.functional import LossTerms
from cgd_wrap.train.dataset import BalancedView
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.sampler import BalancedSampler

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same code under two names


def _callback_classes() -> tuple[Any, ...]:
    """The Callback of each installed package: a Trainer may insist on its own package's."""
    found, missing = [], None
    for name in PACKAGES:
        try:
            found.append(importlib.import_module(name).Callback)
        except ImportError as error:
            missing = error
    if not found:
        raise MissingExtraError("lightning", "lightning") from missing
    return tuple(found)


logger = escaped_logger(__name__)


class CGDCallback(*_callback_classes()):  # type: ignore[misc]
    """Watches a guarded run in a Lightning Trainer, logs the loss' parts, and may end it.

    The callback

    - checks at the start that the guarded samples and the guarded loss are in place;
    - sets the sampler's epoch, in resumed runs, too;
    - logs ``cgd_clean``, ``cgd_guidance`` and ``cgd_unlearning`` at each step, in nats; their sum
      is the loss;
    - logs ``cgd_held_out_accuracy``, in [0, 1], after each epoch;
    - ends training when the stopping rule says so, and then puts the last accepted weights back;
    - warns once if the loss is NaN or infinite;
    - lets a run that goes on from a checkpoint in mid-epoch draw the samples that were left. (By
      itself, Lightning goes on with the first batches of the epoch, and warns that it does; the
      warning can't be kept from here. With several processes, only loaders do so that had a
      ``DistributedSampler`` when they were guarded, or that are torchdata's.)

    Args:
        guard: a guard that has scanned.
        loss: the guarded loss, if it isn't an attribute of the module.
        tolerance: percentage points by which accuracy on the held-out part may fall below its best
            before training stops. Default: the configuration's.

    Attributes:
        stopping: the stopping rule, or None; its ``history`` holds the accuracies.

    Raises:
        CGDError: the guard hasn't scanned.
        ValueError: a tolerance is asked for, and no sample is held out.
    """

    def __init__(
        self, guard: Guarded, *, loss: CGDLoss | None = None, tolerance: float | None = None
    ) -> None:
        self.guard = guard
        self.stopping = watcher(guard, tolerance)
        self._loss = loss
        self._seen: LossTerms | None = None
        self._resumed: list[float] | None = None
        self._watch = LossWatch()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check loaders and loss, and set the epoch that a resumed run goes on with.

        Raises:
            ValueError: the loader or the loss is not the guard's, or samples would be left out.
        """
        loaders = self._guarded_loaders(trainer)
        for loader in loaders:
            _check_order(loader, trainer)
        self._find_loss(pl_module)
        self._restart(trainer, pl_module)
        stale = [loader for loader in loaders if _runs_ahead(loader, trainer.current_epoch)]
        self._set_epoch(trainer)
        stale += _go_on_in_mid_epoch(trainer, loaders)
        if stale:
            iter(trainer.fit_loop._data_fetcher)  # as Lightning does at the start of an epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Set the sampler's epoch, which the wrappers of some versions don't pass on."""
        self._set_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the parts of the batch's loss."""
        loss = self._find_loss(pl_module)
        terms = loss.last_terms
        if terms is None or terms is self._seen:
            return
        self._seen = terms
        self._watch.see(trainer.global_step, terms.total)
        values: dict[str, Any] = {f"cgd_{name}": value for name, value in terms._asdict().items()}
        if loss.untagged_batches:
            values["cgd_untagged_batches"] = float(loss.untagged_batches)
        pl_module.log_dict(values, on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure held-out accuracy, and end training if the stopping rule says so."""
        self._watch.look()
        if self.stopping is None:
            return
        model = self._model(pl_module)
        if self.stopping.step(model):
            self.stopping.restore(model)
            trainer.should_stop = True
        pl_module.log("cgd_held_out_accuracy", self.stopping.history[-1], sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """The held-out accuracies so far, which the checkpoint keeps."""
        return {"history": list(self.stopping.history) if self.stopping else []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the held-out accuracies of a checkpoint."""
        self._resumed = state_dict["history"]

    def _restart(self, trainer: Any, pl_module: Any) -> None:
        """Start the stopping rule, anew in the first epoch or with a checkpoint's accuracies.

        A run that goes on in a later epoch, and not from a checkpoint, keeps its stopping rule.
        """
        history, self._resumed = self._resumed, None
        if self.stopping is None or (history is None and trainer.current_epoch > 0):
            return
        self.stopping = self.stopping.resumed(history or [], self._model(pl_module))
        trainer.should_stop |= self.stopping.rule.stopped

    def _guarded_loaders(self, trainer: Any) -> list[Any]:
        loaders = list(_loaders(trainer.train_dataloader))
        guarded = [loader for loader in loaders if is_guarded(loader, self.guard)]
        if not guarded:
            kinds = [type(getattr(loader, "dataset", None)).__name__ for loader in loaders]
            raise ValueError(
                f"the Trainer trains on {', '.join(kinds) or 'nothing'}, not on the guarded "
                "samples: give it the loader that guard.protect returns, or one of "
                "guard.balanced_view"
            )
        return guarded

    def _find_loss(self, module: nn.Module) -> CGDLoss:
        if self._loss is None:
            self._loss = next((m for m in module.modules() if isinstance(m, CGDLoss)), None)
        if self._loss is None:
            raise ValueError(
                f"{type(module).__name__} holds no guarded loss: set the criterion that it uses to "
                "what guard.protect (or guard.loss) returns, or pass it as CGDCallback(loss=...)"
            )
        return self._loss

    def _model(self, module: nn.Module) -> nn.Module:
        """The guard's model, if the module trains it; otherwise the module itself."""
        trained = {id(parameter) for parameter in module.parameters()}
        own = [id(parameter) for parameter in self.guard.model.parameters()]
        return self.guard.model if own and trained.issuperset(own) else module

    def _set_epoch(self, trainer: Any) -> None:
        for stream in _streams(self._guarded_loaders(trainer)):  # a module may make them anew
            run = max(trainer.max_epochs or 0, 0) or None  # max_steps or a time limit may end it
            if run and stream.epochs.run != run:
                stream.set_run(run)
            stream.set_epoch(trainer.current_epoch)


def _loaders(tree: Any) -> Iterator[Any]:
    """Yield the loaders that a Trainer was given: a loader, or lists and dicts of loaders."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _loaders(part)
    elif tree is not None:
        yield tree


def _streams(loaders: list[Any]) -> Iterator[BalancedSampler | BalancedView]:
    """Yield the samplers and balanced views that choose the samples of an epoch."""
    for loader in loaders:
        yield from balanced_samplers(loader)
        if isinstance(loader.dataset, BalancedView):
            yield loader.dataset


def _runs_ahead(loader: Any, epoch: int) -> bool:
    """Whether a loader has begun another epoch than ``epoch``.

    Workers may have, as the Trainer sets the epoch only after the workers have started. A stateful
    loader that was saved after the last batch of an epoch has begun that epoch's empty rest.
    """
    if not loader.num_workers:
        stateful = hasattr(loader, "load_state_dict")
        return stateful and any(s.place.now()[0] != epoch for s in balanced_samplers(loader))
    if isinstance(loader.dataset, BalancedView):
        return epoch > 0
    return any(sampler.epoch != epoch + 1 for sampler in balanced_samplers(loader))


def _go_on_in_mid_epoch(trainer: Any, loaders: list[Any]) -> list[Any]:
    """Let the guard's samplers start after the batches that a checkpoint in mid-epoch has seen.

    Loaders with a state of their own are restored by the Trainer. Returns the loaders whose workers
    have to begin anew.
    """
    done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    if not trainer.fit_loop.restarting or not 0 < done < trainer.num_training_batches:
        return []
    moved = []
    for loader in loaders:
        sampler = loader.sampler
        if isinstance(sampler, BalancedSampler) and not hasattr(loader, "load_state_dict"):
            position = done * loader.batch_sampler.batch_size
            state = {"epoch": trainer.current_epoch, "position": position}
            sampler.load_state_dict(sampler.state_dict() | state)
            moved.append(loader)
    return [loader for loader in moved if loader.num_workers]


def _check_order(loader: Any, trainer: Any) -> None:
    if isinstance(loader.dataset, BalancedView):
        return
    samplers = balanced_samplers(loader)
    outer: Any = loader.sampler
    if not samplers:
        raise ValueError(
            f"{type(outer).__name__} has taken the place of the guard's sampler, so that classes "
            "are not balanced and held-out samples are trained on. Turn off overfit_batches"
        )
    sharded = samplers[0].num_replicas > 1
    if sharded and isinstance(outer, DistributedSampler) and outer is not samplers[0]:
        raise ValueError(
            "the samples would be dealt to the processes twice, and most left out: pass "
            "Trainer(use_distributed_sampler=False), or give guard.protect a loader without a "
            "DistributedSampler"
        )
    if trainer.world_size > 1 and not sharded and outer is samplers[0]:
        logger.warning(
            "Each of the %d processes trains on the same samples: leave use_distributed_sampler "
            "on, or give guard.protect a loader with a DistributedSampler.",
            trainer.world_size,
        )
