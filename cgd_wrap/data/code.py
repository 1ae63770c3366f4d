"""Describing code for a fingerprint: a library's by its name, the user's own by its bytecode.

Names of files, line numbers, comments and addresses in memory don't count.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

# Methods by which a data set, a transform or a model is called.
ENTRIES = frozenset({
    "__call__", "__getattr__", "__getitem__", "__getitems__", "__iter__", "__len__", "__next__",
    "forward", "logits", "preprocess",
})  # fmt: skip
KIND_OF_FUNCTION = (
    inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
)  # fmt: skip
SETTING = frozenset(
    f"{how}_{what}" for how in ("STORE", "DELETE") for what in ("GLOBAL", "DEREF", "ATTR")
)
MOST_VALUES, MOST_BYTES = 10_000, 2**20  # of a global variable that counts
THIS_PACKAGE = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Code:
    """A description of code.

    Attributes:
        text: name of the code, and a hash of its bytecode if the user wrote it.
        values: values that the code works with, by name: defaults, variables of enclosing
            functions, global variables, attributes of the class.
    """

    text: str
    values: dict[str, Any]


def describe_function(function: Any) -> Code:
    """Describe a function, method or built-in function."""
    plain = _as_function(function)
    if plain is None or _is_library_function(plain):
        inner = getattr(function, "__wrapped__", None)
        if inner is not None:  # a library's decorator, named after the function inside
            return Code("decorated", {"wrapped": inner})
        named = f"{getattr(function, '__module__', None)}.{function.__qualname__}"
        return Code(named, {} if plain is None else _closure_of(plain))
    return Code(f"code {_summary(plain.__code__).hash}", _values_of(plain))


def describe_class(kind: type, *, whole: bool = False) -> Code:
    """Describe a class by its name, and the code that the user wrote of it.

    Args:
        kind: any class.
        whole: count all methods; otherwise those by which an object is called (``ENTRIES``), and
            what these use, or all methods but ``__init__`` of a class that has none of these.
    """
    named = f"{kind.__module__}.{kind.__qualname__}"
    own = [each for each in kind.__mro__ if not is_library_class(each)]
    methods: dict[str, list[FunctionType]] = {}  # of a name: those of the base classes first
    constants: dict[str, Any] = {}
    for each in reversed(own):
        for name, member in vars(each).items():
            function = _as_function(member)
            if function is not None and not _is_library_function(function):
                methods.setdefault(name, []).append(function)
            elif not inspect.isroutine(member) and not name.startswith("__"):
                constants[name] = member
    if not methods:
        return Code(named, {})
    running = set(methods) if whole else _running(methods)
    total, values = blake2b(digest_size=8), dict[str, Any]()
    used, rebound = set[str](), set[str]()
    for name in sorted(running):
        for function in methods[name]:
            summary = _summary(function.__code__)
            total.update(f"{name} {summary.hash} ".encode())
            values |= {f"{name}.{key}": value for key, value in _values_of(function).items()}
            used |= summary.names
            rebound |= summary.rebound
    settings = used - rebound
    for key in settings & constants.keys():
        values |= _used(key, constants[key], settings)
    return Code(f"{named} {total.hexdigest()}", values)


def is_library_class(kind: type) -> bool:
    """Whether a class comes with Python or with an installed package, or with this one."""
    return _is_library_module(kind.__module__)


def counts(value: Any) -> bool:
    """Whether a global variable counts: constants and code do, large things and others don't.

    An object that can't be called may hold anything, such as all arguments of a script: of these,
    the attributes that the code names count.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.nbytes <= MOST_BYTES
    if isinstance(value, (list, tuple, dict, set, frozenset, str, bytes)):
        return len(value) <= MOST_VALUES
    plain = value is None or isinstance(value, (bool, int, float, complex, re.Pattern, Path))
    return plain or callable(value)


def _running(methods: dict[str, list[FunctionType]]) -> set[str]:
    """Names of the methods that run when an object is used."""
    found = {name for name in methods if name in ENTRIES}
    if not found:
        return set(methods) - {"__init__", "__repr__", "__str__"}
    wanted = list(found)
    while wanted:
        for function in methods[wanted.pop()]:
            new = (_summary(function.__code__).names & methods.keys()) - found
            found |= new
            wanted += new
    return found


def _as_function(member: Any) -> FunctionType | None:
    """Find the Python function in a method, property, cached function or static method."""
    for _ in range(10):
        if isinstance(member, FunctionType):
            generated = member.__code__.co_filename.startswith("<@")  # by a type checker
            if not generated or not hasattr(member, "__wrapped__"):
                return member
        inner = (
            getattr(member, name, None) for name in ("__func__", "fget", "func", "__wrapped__")
        )
        member = next((one for one in inner if one is not None), None)
    return None


def _is_library_function(function: FunctionType) -> bool:
    file = function.__code__.co_filename
    return _is_library_module(function.__module__) if file.startswith("<") else _in_library(file)


@functools.lru_cache(maxsize=4096)
def _is_library_module(name: str | None) -> bool:
    root = str(name).partition(".")[0]
    if root in ("__main__", "cgd_wrap"):
        return root == "cgd_wrap"
    module = sys.modules.get(str(name))
    file = getattr(module, "__file__", None)
    return module is not None and (file is None or _in_library(file))


@functools.lru_cache(maxsize=4096)
def _in_library(file: str) -> bool:
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts or file.startswith("<frozen"):
        return True
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), THIS_PACKAGE)
    return any(Path(file).is_relative_to(folder) for folder in folders)


@dataclass(frozen=True)
class _Summary:
    """What a code object does, and the names that it uses.

    Attributes:
        hash: hash of the bytecode with its constants and names, nested functions included.
        names: names of all attributes and global variables.
        read: names of the global variables that it reads.
        rebound: names of the variables, global or of enclosing functions, and of the attributes
            that it sets: these are state, not settings.
    """

    hash: str
    names: frozenset[str]
    read: frozenset[str]
    rebound: frozenset[str]


@functools.lru_cache(maxsize=4096)
def _summary_of(code: CodeType, identity: int) -> _Summary:
    names, read, rebound = set[str](), set[str](), set[str]()
    for part in _nested(code):
        names |= set(part.co_names)
        for step in dis.get_instructions(part):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(step.argval)
            elif step.opname in SETTING:
                rebound.add(step.argval)
    total = blake2b(repr(_content(code)).encode(), digest_size=8)
    return _Summary(
        total.hexdigest(), frozenset(names), frozenset(read), frozenset(rebound)
    )  # fmt: skip


def _summary(code: CodeType) -> _Summary:
    # Code objects are equal where their constants are, and 1 == 1.0: hence the identity, too.
    return _summary_of(code, id(code))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _content(code: CodeType) -> tuple[Any, ...]:
    """List all that decides what a code object does; ``repr`` of the list tells all of it."""
    # Up to Python 3.12 the first constant of a function is its docstring, or None.
    consts = [_constant(value) for value in code.co_consts]
    if code.co_consts and isinstance(code.co_consts[0], str) and _is_docstring(code):
        consts[0] = "None"
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    return (
        code.co_code, code.co_names, tuple(consts), code.co_freevars, shape,
        code.co_flags & KIND_OF_FUNCTION, getattr(code, "co_exceptiontable", b""),
    )  # fmt: skip


def _is_docstring(code: CodeType) -> bool:
    has = getattr(inspect, "CO_HAS_DOCSTRING", None)  # Python 3.13
    if has is not None:
        return bool(code.co_flags & has)
    return not any(
        step.opcode in dis.hasconst and step.arg == 0 for step in dis.get_instructions(code)
    )


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return repr(_content(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):  # its order differs from process to process
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value)


def _values_of(function: FunctionType) -> dict[str, Any]:
    """Values that a function works with: defaults, closure, global constants and functions."""
    code = function.__code__
    summary = _summary(code)
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    values = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    values |= {**(function.__kwdefaults__ or {}), **_closure_of(function)}
    for name in (summary.read - summary.rebound) & function.__globals__.keys():
        values |= _used(name, function.__globals__[name], summary.names - summary.rebound)
    return values


def _closure_of(function: FunctionType) -> dict[str, Any]:
    """Values of the variables of enclosing functions, without those that the function sets."""
    code, values = function.__code__, dict[str, Any]()
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and name not in _summary(code).rebound:
            with suppress(ValueError):  # not set yet
                values[name] = cell.cell_contents
    return values


def _used(name: str, value: Any, names: frozenset[str] | set[str]) -> dict[str, Any]:
    """Values that code may use of a global variable or an attribute of its class, by name.

    Args:
        name: what the code calls the value.
        value: a constant or code, which counts as a whole; or a module of the user's or another
            object, such as all settings of a script, of which the named attributes count.
        names: names of all attributes and global variables in the code.
    """
    found = dict[str, Any]()
    waiting, seen = [(name, value)], set[int]()
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, ModuleType):
            if _is_library_module(one.__name__):
                found[place] = one.__name__
                continue
        elif counts(one):
            found[place] = one
            continue
        if id(one) not in seen:
            seen.add(id(one))
            inside = getattr(one, "__dict__", {})
            waiting += [(f"{place}.{inner}", inside[inner]) for inner in names & inside.keys()]
    return found
