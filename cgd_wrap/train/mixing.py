"""Finding mixup and CutMix in a collate function: their batches can't carry tags."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# Classes of other libraries that blend labels, by their modules. Of a module that nobody has
# imported, there can be no object.
BLENDING = {
    "torchvision.transforms.v2": ("MixUp", "CutMix"),
    "timm.data.mixup": ("Mixup", "FastCollateMixup"),
}
# Functions of these packages hold no transform of the user's but in their arguments.
LIBRARIES = {
    "accelerate", "datasets", "lightning", "numpy", "PIL", "timm", "torch", "torchvision",
    "transformers",
}  # fmt: skip
MOST_SEARCHED = 2000  # objects; the nearest come first


def refuse_mixing(collate: Callable[..., Any] | None) -> None:
    """Refuse a collate function that mixup or CutMix of torchvision or timm is part of.

    The function isn't called. Looked at are its closure, arguments and globals, and the attributes
    and items of objects in these.

    Raises:
        ValueError: there is such a transform; it is named.
    """
    kinds = tuple(
        kind
        for module, names in BLENDING.items()
        for name in names
        if (kind := getattr(sys.modules.get(module), name, None)) is not None
    )
    for value in _within(collate) if kinds else ():
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, kinds):
            raise ValueError(
                f"the loader's collate function holds {kind.__name__}, which blends images and "
                "labels: a blend belongs to no single sample, so the guard can't know it. Take "
                "mixup and CutMix out of the collate function (timm's train.py: --mixup 0 "
                "--cutmix 0)"
            )


def _within(root: Any) -> Iterator[Any]:
    """An object and all that it holds, each once, the nearest first."""
    queue = deque([root])
    seen: dict[int, Any] = {}  # keeps what it has seen, or an id could be given again
    while queue and len(seen) < MOST_SEARCHED:
        value = queue.popleft()
        if id(value) not in seen:
            seen[id(value)] = value
            yield value
            queue.extend(_parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        if str(value.__module__).partition(".")[0] not in LIBRARIES:
            yield from _parts_of_function(value)
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value
    elif hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)):
        yield from vars(value).values()
        yield from (getattr(type(value), name, None) for name in ("__call__", "forward"))


def _parts_of_function(function: FunctionType) -> Iterator[Any]:
    variables = inspect.getclosurevars(function)
    yield from variables.nonlocals.values()
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        yield value
        if isinstance(value, ModuleType):  # v2.MixUp
            yield from (vars(value)[inner] for inner in names & vars(value).keys())


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in a function and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
