"""Refusing models that can't be copied and trained as they are: sharded, without values, quantised.

Each of these is a step that comes after the guard: the scan needs the whole model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_model(model: nn.Module) -> None:
    """Check that a model is whole, has values, and isn't quantised; it stays as it is.

    Raises:
        ValueError: it isn't; the message names the tensor or module, and what to do.
    """
    for name, tensor in _tensors(model):
        sharding = _sharding(tensor)
        if sharding:
            raise ValueError(
                f"the model is sharded by {sharding}: {name!r} holds a part of the weights only. "
                "Make the guard of the whole model and call scan(), and shard the model after that"
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of the model is on the device 'meta', where tensors have no values. "
                "Make the guard when the model's weights have been initialised or loaded"
            )
        if tensor.is_quantized or (isinstance(tensor, nn.Parameter) and _is_narrow(tensor)):
            raise ValueError(_quantised(f"{name!r} is of type {tensor.dtype}"))
    for name, module in model.named_modules():
        if ".quantized." in f"{type(module).__module__}." or getattr(module, "is_quantized", False):
            raise ValueError(_quantised(f"{name or 'the model'!r} is a {type(module).__name__}"))


def check_initialised(model: nn.Module) -> None:
    """Check that the shapes of all parameters are known.

    Raises:
        ValueError: some layers are lazy, and haven't seen an image; the first are named.
    """
    lazy = [name for name, tensor in _tensors(model) if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"the shapes of {lazy[:5]} aren't known yet, since the model has lazy layers. Run a "
            "batch of your images through the model before you make the guard"
        )


def check_has_parameters(model: nn.Module) -> None:
    """Check that a model has parameters to train; a ValueError says that it hasn't."""
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"the model ({type(model).__name__}) has no parameters, so there is nothing to train"
        )


def check_numbers(model: nn.Module) -> None:
    """Check that a model's parameters are numbers; a ValueError names the first that hold NaN."""
    bad = [
        name for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and bool(tensor.detach().isnan().any())
    ]  # fmt: skip
    if bad:
        raise ValueError(
            f"{bad[:5]} of the model hold NaN. Perhaps a training has diverged: load weights from "
            "before"
        )


def check_trainable(model: nn.Module) -> None:
    """Check that a model is as :func:`check_model` wants it, and that gradients can be computed.

    Raises:
        ValueError: it isn't, it has no parameters, all are frozen, some are NaN, or they were made
            in inference mode.
    """
    check_model(model)
    check_initialised(model)
    check_has_parameters(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "all parameters of the model are frozen (requires_grad=False), so there is nothing to "
            "train. Unfreeze those that are to be repaired, such as the last layers"
        )
    check_numbers(model)
    bound = [name for name, tensor in model.named_parameters() if tensor.is_inference()]
    if bound:
        raise ValueError(
            f"{bound[:5]} of the model were made in torch.inference_mode(), so they can't be "
            "trained. Make or load the model outside of it"
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _sharding(tensor: Tensor) -> str | None:
    """Name what has sharded a parameter; None if it is whole."""
    if hasattr(tensor, "ds_id"):
        return "DeepSpeed's ZeRO-3"
    # Whoever has such tensors has loaded their modules; importing these takes half a second.
    for module, kind, name in (
        ("torch.distributed.tensor", "DTensor", "FSDP2 (fully_shard) or tensor parallelism"),
        ("torch.distributed.fsdp", "FlatParameter", "FSDP"),
    ):
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(tensor, known):
            return name
    return None


def _is_narrow(parameter: nn.Parameter) -> bool:
    """Whether a parameter's values take a byte or less, or are packed by torchao."""
    packed = type(parameter.data).__module__.startswith("torchao")
    return packed or (parameter.dtype.itemsize == 1 and parameter.dtype != torch.bool)


def _quantised(what: str) -> str:
    return (
        f"the model is quantised: {what}. Quantised weights can't be trained: make the guard of "
        "the model as it was before, train, and quantise what has been trained"
    )
