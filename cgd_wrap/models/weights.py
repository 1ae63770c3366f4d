"""Initialising, loading and hashing a model's weights."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import PicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from cgd_wrap.escaping import brief
from cgd_wrap.files import write_atomically
from cgd_wrap.models.derived_weights import reset_with_derived
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.safe_loading import load_weights_only, why_not_loaded
from cgd_wrap.models.supported import check_has_parameters, check_initialised, check_model
from cgd_wrap.randomness import plain_torch, seeded

_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # what DDP and torch.compile add to a name


# Buffers that hold what was learned, with their value before any training. Other buffers are taken
# for constants, such as positions or the mean of the pixels.
_LEARNED = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0, "weight": 1, "bias": 0}


@plain_torch()
def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """Copy a model's architecture, with newly initialised fp32 parameters that are all trained.

    A transformers model is built anew from its config, if that gives the same architecture. Any
    other model is copied, and every module initialised by its own ``reset_parameters`` (and timm's
    ``init_weights``). Parameters that these don't initialise start from a normal distribution of
    standard deviation 0.02, and vectors from 0 or 1. Weights that are derived from others, such as
    by weight norm, are new, too.

    Args:
        model: any classifier; left as it is.
        seed: seed of the initialisation; the global random stream is left alone.

    Raises:
        ValueError: the model is sharded, without values, quantised or has no parameters (see
            :mod:`cgd_wrap.models.supported`), is compiled by ``torch.jit``, or can't be copied.
    """
    model = unwrapped(model)
    check_model(model)
    check_initialised(model)
    check_has_parameters(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            "a model that torch.jit has compiled can't be initialised anew, as its code is gone. "
            "Make the guard of the model as it was before, or pass suspicious="
        )
    with seeded(seed):
        fresh = _built_from_config(model)
    if fresh is None:
        with seeded(seed):
            fresh = _initialised_copy(model)
    fresh = fresh.float()
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return fresh


def copy_of(model: nn.Module) -> nn.Module:
    """Deep copy of a model, also of one that keeps tensors of its last forward pass.

    Such tensors, among them the weights of the old ``weight_norm``, have a graph of gradients,
    which can't be copied; the copy holds their values.

    Raises:
        ValueError: the model holds what Python can't copy, such as a lock or an open file.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors_in(list(vars(module).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, PicklingError) as error:
        raise ValueError(
            f"the model ({type(model).__name__}) can't be copied: {brief(error)}. Give what can't "
            "be copied, such as a lock or an open file, to a method or a global variable, or write "
            "a __deepcopy__ for it"
        ) from error


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth - 1)


def _built_from_config(model: nn.Module) -> nn.Module | None:
    """Build a transformers model anew; None if its config doesn't tell all of its architecture."""
    if not (hasattr(type(model), "post_init") and "config" in vars(model)):
        return None
    try:
        fresh = type(model)(copy.deepcopy(model.config))  # type: ignore[arg-type]
    except Exception:  # a subclass whose __init__ asks for more than a config
        return None
    return fresh if _architecture(fresh) == _architecture(model) else None


def _architecture(model: nn.Module) -> tuple[list[Any], list[Any]]:
    modules = [(name, type(module)) for name, module in model.named_modules()]
    return modules, [(name, tensor.shape) for name, tensor in model.state_dict().items()]


def _initialised_copy(model: nn.Module) -> nn.Module:
    fresh = copy_of(model)
    # What makes a module's weight is initialised with that module.
    lists = [
        module for module in fresh.modules()
        if isinstance(module, ParametrizationList) and list(module.parameters(recurse=False))
    ]  # fmt: skip
    inner = {part for parts in lists for part in parts.modules()}
    for module in fresh.modules():
        if module not in inner:
            reset_with_derived(module, _reset)
    initialise: Any = getattr(fresh, "init_weights", None)
    if hasattr(fresh, "pretrained_cfg") and callable(initialise):
        initialise()
    return fresh


@torch.no_grad()
def _reset(module: nn.Module) -> None:
    own = {n: p for n, p in module.named_parameters(recurse=False) if p.is_floating_point()}
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        for parameter in own.values():
            parameter.fill_(math.nan)  # to see what the module itself doesn't initialise
        with suppress(TypeError):  # some other method of this name, which takes arguments
            reset()
        own = {name: parameter for name, parameter in own.items() if parameter.isnan().any()}
    for name, parameter in own.items():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        else:  # a bias or shift starts at 0, a gain or scale at 1
            parameter.fill_(0.0 if name.endswith(("bias", "beta", "shift")) else 1.0)
    for name, buffer in module.named_buffers(recurse=False):
        if name in _LEARNED and buffer.ndim <= 1:
            buffer.fill_(_LEARNED[name])


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy a model and load the weights of a file; nothing in the file is executed.

    Args:
        model: gives the architecture; left as it is.
        path: ``.safetensors``, or a file that ``torch.load(weights_only=True)`` reads: a state
            dict, or a dict that holds one under ``state_dict`` or ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or weights of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    loaded = copy_of(unwrapped(model))
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.load_model(loaded, path)
            return loaded
        weights = load_weights_only(path)
        if not isinstance(weights, Mapping):
            raise TypeError(f"expected a state dict, got {type(weights).__name__}")
        for key in ("state_dict", "model"):
            weights = weights[key] if isinstance(weights.get(key), dict) else weights
        own = loaded.state_dict()
        loaded.load_state_dict(
            {name if name in own else _WRAPPED.sub("", name): t for name, t in weights.items()}
        )
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} can't be loaded as weights of {type(loaded).__name__}: "
            f"{why_not_loaded(error)}"
        ) from error
    return loaded


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights as a safetensors file, as a whole or not at all.

    Weights that have several names are written under the first, as ``safetensors`` does it:
    :func:`load_checkpoint` and ``safetensors.torch.load_model`` read them.

    Raises:
        OSError: the file can't be written; on a full disk, with the bytes needed and free.
    """
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or memory not in seen:
            tensors[name] = tensor.detach().cpu().clone().contiguous()
            seen.add(memory)
    write_atomically(path, safetensors.torch.save(tensors, {"format": "pt"}))


def hash_weights(model: nn.Module) -> str:
    """Hash a model's tensors: see :func:`hash_tensors`."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return f"blake2b:{digest.hexdigest()}"
