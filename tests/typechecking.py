"""The type checker that the tests put on every function of the package: beartype, with shapes.

jaxtyping puts a decorator of its own on them, which binds the arguments and checks them twice at
each call: the tests took half as long again by it. The one here checks as much, arguments and
result, in jaxtyping's context, where an axis has one length.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

MANY, EACH = 200, 16  # from so many calls of a function on, every EACH-th one is checked
SHAPED = re.compile(r"\[(np\.|torch\.)?(Tensor|ndarray)\b")  # in annotations, as jaxtyping's are
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
    """The function, checked where its annotations tell shapes; of a dataclass, what makes it.

    All other types are mypy's to check, which takes no time in the tests. A function within a
    function stays as it is: it is made anew at each call, and so would its check be.
    """
    if isinstance(target, type):
        if dataclasses.is_dataclass(target):
            target.__init__ = checked(target.__init__)
        return target
    if "<locals>" in target.__qualname__ or not SHAPED.search(str(target.__annotations__)):
        return target
    inner: Callable[..., Any] | None = None
    calls = 0

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal inner, calls
        calls += 1
        if jaxtyping.config.jaxtyping_disable or (calls > MANY and calls % EACH):
            return target(*args, **kwargs)
        if inner is None:  # at the first call, when all names are there
            inner = typed_as(target, hints_of(target))
        with jaxtyped("context"):
            return inner(*args, **kwargs)

    return call


def typed_as(target: FunctionType, hints: dict[str, Any]) -> Callable[..., Any]:
    """The function, checked for these hints."""
    written, target.__annotations__ = target.__annotations__, hints
    try:
        checked_function: Callable[..., Any] = typed(target)
        return checked_function
    finally:
        target.__annotations__ = written


def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of ``jaxtyping.jaxtyped``, which jaxtyping's import hook puts on definitions."""
    return checked


@contextmanager
def checking(package: str) -> Iterator[None]:
    """Let what is imported of the package in here be checked."""
    with jaxtyping.install_import_hook(package, "typechecking.typed"):
        yield


# The hook asks for it by name, of a function within a function at each call of the outer one.
# Older versions of jaxtyping look for jax at each call, which would make ours the slower one.
if NEW_JAXTYPING:
    jaxtyping.jaxtyped = decorator
