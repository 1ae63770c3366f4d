"""Computing the user's criterion sample by sample, and the divisor of the criterion's mean."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor], Tensor]


def per_sample(criterion: Any) -> Criterion:
    """Turn a criterion into one that returns a loss for each sample, [B], in place of the mean.

    Raises:
        TypeError: (when called) the criterion can't be computed sample by sample.
    """
    if isinstance(criterion, nn.CrossEntropyLoss):
        return lambda outputs, labels: F.cross_entropy(
            outputs,
            labels,
            weight=None if criterion.weight is None else criterion.weight.to(outputs),
            ignore_index=criterion.ignore_index,
            label_smoothing=criterion.label_smoothing,
            reduction="none",
        )
    if isinstance(criterion, nn.Module) and hasattr(criterion, "reduction"):
        unreduced: Any = copy.copy(criterion)  # shares its tensors, which .to() moves
        unreduced.reduction = "none"
        return _checked(unreduced, criterion)
    if not isinstance(criterion, nn.Module) and "reduction" in _parameters(criterion):
        return _checked(lambda o, y: criterion(o, y, reduction="none"), criterion)
    alone = torch.func.vmap(lambda o, y: criterion(o[None], y[None]))
    return _checked(alone, criterion)


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


def _parameters(criterion: Any) -> set[str]:
    try:
        return set(inspect.signature(criterion).parameters)
    except (TypeError, ValueError):
        return set()


def _checked(unreduced: Criterion, criterion: Any) -> Criterion:
    def losses(outputs: Tensor, labels: Tensor) -> Tensor:
        try:
            values = unreduced(outputs, labels)
        except Exception as error:
            raise _not_separable(criterion) from error
        if values.shape != labels.shape:
            raise _not_separable(criterion)
        return values

    return losses


def _not_separable(criterion: Any) -> TypeError:
    return TypeError(
        f"{type(criterion).__name__} can't be computed sample by sample, which the guard "
        "needs. Use nn.CrossEntropyLoss (label_smoothing and weight are kept), or give your "
        "criterion a reduction attribute that knows 'none'."
    )
