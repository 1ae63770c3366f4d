"""The type checker that the tests put on every function of the package: beartype, with shapes.

jaxtyping puts a decorator of its own on them, which binds the arguments and checks them twice at
each call: the tests took half as long again by it. The one here checks as much, arguments and
result, in jaxtyping's context, where an axis has one length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType, SimpleNamespace
from typing import Any, get_type_hints
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

NEW_JAXTYPING = tuple(map(int, jaxtyping.__version__.split(".")[:2])) >= (0, 3)

# As for mypy, an int is welcome where a float is expected.
typed = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def hints_of(function: FunctionType) -> dict[str, Any]:
    """What can be known of its annotations: not what is imported for mypy alone."""
    hints = {}
    for name, written in function.__annotations__.items():
        one: Any = SimpleNamespace(__annotations__={name: written})
        try:
            hints |= get_type_hints(one, function.__globals__, include_extras=True)
        except (NameError, TypeError):  # tqdm's stubs are generic, and tqdm isn't
            hints[name] = Any
    return hints


def checked(target: Any) -> Any:
    """The function, checked; of a class, what a dataclass is made from."""
    if isinstance(target, type):
        if dataclasses.is_dataclass(target):
            target.__init__ = checked(target.__init__)
        return target

    @functools.cache
    def inner() -> Callable[..., Any]:  # at the first call, when all names are there
        written, target.__annotations__ = target.__annotations__, hints_of(target)
        try:
            return typed(target)
        finally:
            target.__annotations__ = written

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        with jaxtyped("context"):
            return inner()(*args, **kwargs)

    return call


def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of ``jaxtyping.jaxtyped``, which jaxtyping's import hook puts on definitions."""
    return checked


@contextmanager
def checking(package: str) -> Iterator[None]:
    """Let what is imported of the package in here be checked."""
    hook = jaxtyping.install_import_hook(package, "typechecking.typed")
    # Older versions look for jax at each call, which would make ours the slower one.
    ours = patch("jaxtyping.jaxtyped", decorator) if NEW_JAXTYPING else nullcontext()
    with hook, ours:
        yield
