"""Listing the submodules of a model with all settings that decide what they compute.

Left out is what changes without changing the function: weights, training mode, device, hooks, and
wrappers of torch.compile, DDP and Accelerate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cgd_wrap.data.code import is_library_class
from cgd_wrap.data.leaves import constants_of_script

# Attributes of modules and of their configurations that say where they come from or how they are
# run, not what they compute.
BESIDE_THE_FUNCTION = frozenset({
    "_attn_implementation_autoset", "_commit_hash", "_compile_kwargs", "_compiled_call_impl",
    "_flat_weight_refs", "_flat_weights", "_hf_hook", "_is_hf_initialized", "_is_torch_compile",
    "_name_or_path", "_old_forward", "_original_forward", "architectures", "default_cfg", "dtype",
    "generation_config", "hf_device_map", "name_or_path", "pretrained_cfg", "problem_type",
    "torch_dtype", "transformers_version", "warnings_issued",
})  # fmt: skip
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
LONGEST_TEXT = 80  # characters of a module's own description


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every submodule with each of its names, the model first; wrappers are left out."""
    seen = set[int]()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        module = _within(module)
        yield name, module
        if id(module) not in seen:
            seen.add(id(module))
            children = [(f"{name}.{key}".lstrip("."), child)
                        for key, child in module._modules.items() if child is not None]  # fmt: skip
            waiting += reversed(children)


def _within(module: nn.Module) -> nn.Module:
    """Take wrappers off a module."""
    while True:
        inner: Any = getattr(module, "_orig_mod", None)
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            inner = module.module
        if inner is None:
            return module
        module = inner


def module_text(module: nn.Module) -> str:
    """Describe a library's module as ``print`` does, for error messages; "" for a user's own."""
    text = ""
    if is_library_class(type(module)):
        if not isinstance(module, (nn.ParameterList, nn.ParameterDict)):  # these name a device
            with suppress(Exception):
                text = re.sub(r" at 0x[0-9a-fA-F]+", "", module.extra_repr())
        text = f"({' '.join(text.split())})"
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Find the settings of a module: its attributes, and buffers that no checkpoint holds."""
    if isinstance(module, torch.jit.ScriptModule):
        return {"code": getattr(module, "code", ""), "constants": constants_of_script(module)}
    given = vars(module)
    found = {
        name: value for name, value in given.items()
        if name not in OF_EVERY_MODULE and is_setting(name) and name != "forward"
        and not (isinstance(value, torch.Tensor) and _is_derived(name, module))
    }  # fmt: skip
    if module._modules:
        found["submodules"] = list(module._modules)  # in a Sequential, their order decides
    found |= {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
    if isinstance(module, torch.fx.GraphModule):
        found["code"] = module.code
    replaced = given.get("_original_forward") or given.get("_old_forward") or given.get("forward")
    if getattr(replaced, "__func__", replaced) not in (None, type(module).forward):
        found["forward"] = replaced
    return found


def is_setting(name: str) -> bool:
    """Whether an attribute of a module, by its name, may decide what the module computes."""
    return name not in BESIDE_THE_FUNCTION and "checkpointing" not in name


def _is_derived(name: str, module: nn.Module) -> bool:
    """Whether a tensor is computed from parameters, as by ``torch.nn.utils.weight_norm``."""
    return any(parameter.startswith(f"{name}_") for parameter in module._parameters)
