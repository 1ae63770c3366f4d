"""Taking the user's criterion apart: a loss of each sample, and what its mean is divided by."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cgd_wrap.train.trials import Trial, devices_of, trials_of

Criterion = Callable[[Tensor, Tensor], Tensor]
Way = Callable[[Any, Tensor, Tensor], Tensor]  # criterion, outputs, labels -> loss of each sample


@dataclass(frozen=True)
class TakenApart:
    """How a criterion is computed sample by sample, found out by :func:`take_apart`.

    Attributes:
        way: computes the criterion's loss of each sample.
        weighted: whether a mean over samples is divided by the sum of their class weights.
        reduction: what the criterion makes of the samples' losses, ``"mean"`` or ``"sum"``.
    """

    way: Way
    weighted: bool
    reduction: str

    def losses(
        self, criterion: Any, outputs: Float[Tensor, "b classes"], labels: Int[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Compute the loss of each sample.

        Raises:
            TypeError: the criterion can't be computed sample by sample.
        """
        try:
            values = self.way(_uncompiled(criterion), outputs, labels)
        except Exception as error:
            raise _not_separable(criterion) from error
        if values.shape != labels.shape:
            raise _not_separable(criterion)
        return values

    def is_plain(self, criterion: Any, classes: int) -> bool:
        """Whether the criterion is the mean of the cross entropy: no weights, nothing smoothed."""
        if self.way is not _cross_entropy or self.reduction != "mean":
            return False
        criterion = _uncompiled(criterion)
        ignores = 0 <= criterion.ignore_index < classes
        return not ignores and criterion.weight is None and not criterion.label_smoothing

    def weights(
        self, criterion: Any, outputs: Float[Tensor, "b classes"]
    ) -> Float[Tensor, "classes"]:
        """Weight of a sample of each class in what a mean over samples is divided by."""
        return class_weight(_uncompiled(criterion) if self.weighted else None, outputs)


def take_apart(criterion: Any, classes: int) -> TakenApart:
    """Find out how a criterion is computed sample by sample, and what it makes of the samples.

    Plain cross entropy is known. Any other criterion is tried on made-up outputs: the losses of the
    samples must have the criterion's own value as their mean, weighted mean or sum. So nothing that
    the criterion does to a batch (class weights inside a function, a sum, a ``forward`` of its own)
    is lost without a word.

    Args:
        criterion: a module, or a function of outputs [B, C] and labels [B].
        classes: number of classes, C.

    Raises:
        ValueError: the criterion returns a loss of each sample; or its mean can't be told from the
            losses of the samples.
        TypeError: the criterion can't be computed sample by sample.
    """
    criterion = _uncompiled(criterion)
    if _is_cross_entropy(criterion):
        _check_reduced(criterion.reduction == "none", criterion)
        return TakenApart(_cross_entropy, True, criterion.reduction)
    fault: Exception | None = None
    for device in devices_of(criterion):
        trials = trials_of(classes, device)
        try:
            values = [trial.run(_called, criterion) for trial in trials]
        except Exception as error:  # such as tensors in the criterion that lie on another device
            fault = fault or error
            continue
        _check_reduced(values[0].shape == trials[0].labels.shape, criterion)
        for trial in [trial.fitted() for trial in trials if device.type == "cpu"]:
            # A criterion of probabilities may refuse logits; on a GPU that would end the process.
            with suppress(Exception):
                values.append(trial.run(_called, criterion))
                trials.append(trial)
        return _matching(criterion, trials, values)
    raise _not_separable(criterion) from fault


def class_weight(criterion: Any, outputs: Float[Tensor, "b classes"]) -> Float[Tensor, "classes"]:
    """Weight of a sample of each class in the sum that the criterion's mean is divided by.

    Cross entropy divides by the sum of the class weights of its samples, and leaves out an ignored
    class; any other criterion is taken to divide by the number of samples.
    """
    weight = ignored = None
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
        weight, ignored = criterion.weight, criterion.ignore_index
    elif isinstance(criterion, functools.partial) and criterion.func in (
        F.cross_entropy,
        F.nll_loss,
    ):
        weight, ignored = (criterion.keywords.get(name) for name in ("weight", "ignore_index"))
    counted = outputs.new_ones(outputs.shape[1]) if weight is None else weight.to(outputs).clone()
    if ignored is not None and 0 <= ignored < len(counted):
        counted[ignored] = 0
    return counted


# --- ways to the losses of the samples ----------------------------------------------------------


def _cross_entropy(criterion: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        outputs,
        labels,
        weight=None if criterion.weight is None else criterion.weight.to(outputs),
        ignore_index=criterion.ignore_index,
        label_smoothing=criterion.label_smoothing,
        reduction="none",
    )


def _by_attribute(criterion: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    given = criterion.reduction
    criterion.reduction = "none"  # for a moment: a copy would lose what the criterion remembers
    try:
        losses: Tensor = criterion(outputs, labels)
    finally:
        criterion.reduction = given
    return losses


def _by_argument(criterion: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    losses: Tensor = criterion(outputs, labels, reduction="none")
    return losses


def _one_by_one(criterion: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    losses: Tensor = torch.func.vmap(lambda o, y: criterion(o[None], y[None]))(outputs, labels)
    return losses


def _called(criterion: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    value = criterion(outputs, labels)
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor, got {type(value).__name__}")
    return value


def _ways(criterion: Any) -> Iterator[Way]:
    if isinstance(criterion, nn.Module) and hasattr(criterion, "reduction"):
        yield _by_attribute
    if not isinstance(criterion, nn.Module) and "reduction" in _parameters(criterion):
        yield _by_argument
    yield _one_by_one


def _uncompiled(criterion: Any) -> Any:
    """The criterion inside torch.compile, as an attribute that is set outside is set inside."""
    inner = getattr(criterion, "_orig_mod", criterion)
    return getattr(inner, "_torchdynamo_orig_callable", inner)


def _is_cross_entropy(criterion: Any) -> bool:
    """Whether a criterion is torch's own cross entropy, without a ``forward`` or hooks beside."""
    return type(criterion) is nn.CrossEntropyLoss and not (
        "forward" in vars(criterion) or criterion._forward_hooks or criterion._forward_pre_hooks
    )


def _parameters(criterion: Any) -> set[str]:
    try:
        return set(inspect.signature(criterion).parameters)
    except (TypeError, ValueError):
        return set()


# --- how the losses of the samples become the criterion's value -----------------------------------


def _matching(criterion: Any, trials: list[Trial], values: list[Tensor]) -> TakenApart:
    """The first way in which the samples have the criterion's values as their mean or sum."""
    fault: Exception | None = None
    found = False
    for way in _ways(criterion):
        try:
            losses = [trial.run(way, criterion) for trial in trials]
        except Exception as error:
            fault = error
            continue
        apart = all(x.shape == trial.labels.shape for x, trial in zip(losses, trials, strict=True))
        if not apart or values[0].ndim:
            continue
        found = True
        for weighted, reduction in itertools.product((True, False), ("mean", "sum")):
            apart_so = TakenApart(way, weighted, reduction)
            made = [
                _reduced(apart_so, criterion, trial, each)
                for trial, each in zip(trials, losses, strict=True)
            ]
            if torch.allclose(
                torch.stack(made), torch.stack(values).float(), rtol=1e-4, atol=1e-6, equal_nan=True
            ):
                return apart_so
    if not found:
        raise _not_separable(criterion) from fault
    raise ValueError(
        f"{_name(criterion)} is neither the mean nor the sum of its losses of single samples, so "
        "that the guard would change what it means. Give class weights and an ignored class as "
        "nn.CrossEntropyLoss(weight=..., ignore_index=...) or "
        "functools.partial(F.cross_entropy, weight=...); otherwise give the criterion a reduction "
        "attribute or argument that knows 'none'."
    )


def _reduced(apart: TakenApart, criterion: Any, trial: Trial, losses: Tensor) -> Tensor:
    """The mean or sum of a batch's losses."""
    total = losses.float().sum()
    if apart.reduction == "sum":
        return total
    return total / apart.weights(criterion, trial.outputs)[trial.labels].sum()


def _check_reduced(is_vector: bool, criterion: Any) -> None:
    if is_vector:
        raise ValueError(
            f"{_name(criterion)} returns a loss of each sample, but the guarded loss is a loss of "
            "the whole batch: triggered samples have guidance and unlearning in place of a loss, "
            'and parts are divided by their own counts. Pass a criterion with reduction="mean" or '
            '"sum"'
        )


def _not_separable(criterion: Any) -> TypeError:
    return TypeError(
        f"{_name(criterion)} can't be computed sample by sample, which the guard "
        "needs. Use nn.CrossEntropyLoss (label_smoothing and weight are kept), or give your "
        "criterion a reduction attribute that knows 'none'."
    )


def _name(criterion: Any) -> str:
    named = criterion.func if isinstance(criterion, functools.partial) else criterion
    return getattr(named, "__name__", type(named).__name__)
