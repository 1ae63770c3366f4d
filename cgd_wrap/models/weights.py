"""Initialising, loading and hashing a model's weights."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cgd_wrap.escaping import brief
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.randomness import seeded

_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # what DDP and torch.compile add to a name


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """Copy a model's architecture, with newly initialised fp32 parameters.

    A transformers model is built anew from its config; any other model is copied, and every module
    initialised by its own ``reset_parameters`` (and timm's ``init_weights``). Parameters of
    modules without ``reset_parameters`` start from a normal distribution of standard deviation
    0.02.

    Args:
        model: any classifier; left as it is.
        seed: seed of the initialisation; the global random stream is left alone.
    """
    model = unwrapped(model)
    with seeded(seed):
        if hasattr(model, "config") and hasattr(model, "post_init"):
            fresh: nn.Module = type(model)(copy.deepcopy(model.config))
        else:
            fresh = copy.deepcopy(model)
            for module in fresh.modules():
                _reset(module)
            initialise: Any = getattr(fresh, "init_weights", None)
            if hasattr(fresh, "pretrained_cfg") and callable(initialise):
                initialise()
    return fresh.float().requires_grad_(True)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            else:  # a bias or shift starts at 0, a gain or scale at 1
                parameter.fill_(0.0 if name.endswith(("bias", "beta", "shift")) else 1.0)


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
    loaded = copy.deepcopy(unwrapped(model))
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.load_model(loaded, path)
            return loaded
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            weights = weights[key] if isinstance(weights.get(key), dict) else weights
        own = loaded.state_dict()
        loaded.load_state_dict(
            {name if name in own else _WRAPPED.sub("", name): t for name, t in weights.items()}
        )
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} can't be loaded as weights of {type(loaded).__name__}: {brief(error)}"
        ) from error
    return loaded


def hash_weights(model: nn.Module) -> str:
    """Hash of every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return f"blake2b:{digest.hexdigest()}"
