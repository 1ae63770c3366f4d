"""Reading the logits of the user's model, and taking wrappers such as DDP off the model."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def logits_of(output: Any) -> Float[Tensor, "b classes"]:
    """Take the logits from a model's output: the output itself, ``.logits``, or ``["logits"]``.

    Raises:
        TypeError: the output holds no logits [B, C].
    """
    logits = output
    if not isinstance(output, Tensor):
        is_dict = isinstance(output, dict)
        logits = output.get("logits") if is_dict else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise TypeError(
            "the model must return logits [B, C], or an output with .logits of that shape; got "
            f"{type(output).__name__}"
            + (f" with logits of shape {list(logits.shape)}" if isinstance(logits, Tensor) else "")
        )
    return logits


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and torch.compile."""
    inner: Any = model
    while (held := _held_by(inner)) is not None:
        inner = held
    module: nn.Module = inner
    return module


def _held_by(wrapper: Any) -> Any:
    if isinstance(wrapper, (DistributedDataParallel, nn.DataParallel)):
        return wrapper.module
    return getattr(wrapper, "_orig_mod", None)
