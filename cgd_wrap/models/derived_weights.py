"""Weights that a module computes from other parameters: weight and spectral norm, pruning, others.

``torch.nn.utils.parametrize`` keeps the other parameters in ``module.parametrizations``; older
functions (``weight_norm``, ``spectral_norm``, ``prune``) keep them beside the weight, which a hook
computes before each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

POWER_ITERATIONS = 15  # as torch's spectral_norm makes when it is put on a module


def reset_with_derived(module: nn.Module, reset: Callable[[nn.Module], None]) -> None:
    """Initialise a module as if its derived weights were parameters, and pass the values on.

    Args:
        module: with or without derived weights; changed in place.
        reset: initialises a module's own parameters.
    """
    parametrized, hooks = _parametrized(module), _hooks(module)
    for part in parametrized.values():  # first, as the values below are passed on through these
        for inner in list(part.modules())[1:]:
            reset(inner)
    values = {name: getattr(module, name).detach().clone() for name in (*parametrized, *hooks)}
    own_class = type(module)
    if parametrized:  # torch has put a subclass with a property for each such weight in its place
        module.__class__ = own_class.__bases__[0]
    for name, value in values.items():
        vars(module).pop(name, None)
        module.register_parameter(name, nn.Parameter(value))
    try:
        reset(module)
    finally:
        fresh = {name: module._parameters.pop(name) for name in values}
        module.__class__ = own_class
    with torch.no_grad():
        for name, part in parametrized.items():
            _set_original(module, name, part, _drawn(fresh[name]))
        for name, hook in hooks.items():
            _set_beside(module, name, hook, _drawn(fresh[name]))


def _drawn(parameter: nn.Parameter | None) -> Tensor:
    assert parameter is not None
    return parameter.detach()


def _parametrized(module: nn.Module) -> dict[str, Any]:
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    return {n: part for n, part in lists.items() if list(part.parameters(recurse=False))}


def _hooks(module: nn.Module) -> dict[str, Any]:
    """Hooks that compute a weight before each forward pass, by the weight's name."""
    found = {}
    for hook in module._forward_pre_hooks.values():
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and isinstance(vars(module).get(name), Tensor):
            found[name] = hook
    return found


def _set_original(module: nn.Module, name: str, part: Any, value: Tensor) -> None:
    try:
        setattr(module, name, value)  # by the inverse of the parametrization
    except (RuntimeError, NotImplementedError, ValueError):  # which it may not have
        for original in part.parameters(recurse=False):
            if original.shape == value.shape:
                original.copy_(value)
            else:
                nn.init.normal_(original, std=0.02)
    vectors = sum(_redraw(each, ("_u", "_v")) for each in part)
    if vectors:
        _iterate(part, part)


def _set_beside(module: nn.Module, name: str, hook: Any, value: Tensor) -> None:
    parameters = module._parameters
    original, direction, norm = (parameters.get(name + end) for end in ("_orig", "_v", "_g"))
    if original is not None:
        original.copy_(value)
    elif direction is not None and norm is not None:
        direction.copy_(value)
        norm.copy_(torch.norm_except_dim(value, 2, hook.dim))
    if _redraw(module, (f"{name}_u", f"{name}_v")):
        _iterate(module, lambda: hook(module, None))
    hook(module, None)


def _redraw(module: nn.Module, names: tuple[str, ...]) -> int:
    """Draw the vectors of a power iteration anew, since they fit the old weights; count them."""
    vectors = [v for v in map(module._buffers.get, names) if v is not None]
    for vector in vectors:
        vector.copy_(nn.functional.normalize(torch.randn_like(vector), dim=0))
    return len(vectors)


def _iterate(module: nn.Module, compute: Callable[[], Any]) -> None:
    """Compute a derived weight as often as a power iteration needs, which runs in training mode."""
    training = module.training
    module.train()
    try:
        for _ in range(POWER_ITERATIONS):
            compute()
    finally:
        module.train(training)
