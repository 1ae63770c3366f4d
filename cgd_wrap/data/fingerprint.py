"""Describing what a dataset or model holds and does, equally in every process that opens it."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping
from hashlib import blake2b
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from cgd_wrap.data.code import Code, describe_class, describe_function, is_library_class
from cgd_wrap.data.leaves import (
    Leaves,
    as_json,
    brief,
    joined,
    shape_of,
    type_name,
    without_addresses,
)
from cgd_wrap.data.modules import is_setting, module_text, plain_modules, settings_of
from cgd_wrap.data.sources import is_table, is_timm
from cgd_wrap.data.tables import describe_frame, describe_table
from cgd_wrap.data.transforms import is_image_transform

MAX_DEPTH = 60
MOST_KEYS = 32  # of a mapping whose values get names of their own
# Modules whose objects are machinery of the process: they hold no data, and walking never ends.
OPAQUE_MODULES = {
    *("_io", "io", "tempfile", "mmap", "socket", "sqlite3", "logging", "types", "builtins"),
    *("_thread", "threading", "multiprocessing", "concurrent", "asyncio", "queue", "subprocess"),
    *("re", "weakref", "functools"),
}
# Names of attributes (counters, open files) that change while a dataset is merely read.
VOLATILE = frozenset({"_consecutive_errors", "_lock", "lock", "_file", "_fp", "_handle"})
TRANSFORMS = ("transform", "transforms", "target_transform")


def dataset_fingerprint(dataset: Any, *, ignore: Collection[str] = TRANSFORMS) -> str:
    """Hash a dataset, or any other object, by all its :func:`parts`.

    Args:
        dataset: any dataset.
        ignore: attributes to leave out, on every level.

    Returns:
        32 hexadecimal digits, the same in every process.
    """
    return _hash_of(parts(dataset, "dataset", ignore=ignore))


def parts(
    value: Any, name: str, *, ignore: Collection[str] = TRANSFORMS, weights: bool = True
) -> dict[str, str]:
    """Describe an object by all that it holds and does, as a text or hash for each attribute.

    No file is opened and no item is read. Arrays count by their bytes, up to 1 GiB in all; by type
    and shape alone beyond that. Code that the user wrote counts by its bytecode, a library's by
    its name (see :mod:`cgd_wrap.data.code`); a module by its submodules and their settings (see
    :mod:`cgd_wrap.data.modules`). A ``datasets.Dataset`` counts by its cache files and their times,
    or by its content where it lives in memory.

    Args:
        value: any object.
        name: what the object is called; its attributes are called ``name.attribute``. All items of
            a list are called ``name[]``.
        ignore: attributes to leave out, on every level.
        weights: count the weights of modules; otherwise only their names and shapes.

    Returns:
        The description of each part by name, the same in every process.
    """
    walk = _Walk(frozenset(ignore) | VOLATILE, weights=weights)
    walk.add(name, value)
    return {part: found.text for part, found in sorted(walk.parts.items())}


def _hash_of(described: Mapping[str, str]) -> str:
    return joined("parts", [text.encode() for pair in described.items() for text in pair]).hex()


class _Part:
    """The description of all values that have the same name."""

    def __init__(self) -> None:
        self.count, self.first, self.all = 0, "", blake2b(digest_size=16)

    def add(self, text: str) -> None:
        self.first = self.first if self.count else text
        self.count += 1
        self.all.update(f"{len(text)} {text}".encode())

    @property
    def text(self) -> str:
        return self.first if self.count == 1 else f"{self.count} values {self.all.hexdigest()}"


class _Walk:
    """Walks over an object and all that it refers to, once, and describes each part by a text."""

    def __init__(self, ignore: frozenset[str], *, weights: bool = True) -> None:
        self.ignore, self.weights = ignore, weights
        self.leaves = Leaves(weights=weights)
        self.parts = defaultdict[str, _Part](_Part)
        # What was met, with its text or the place where it was met; holds it: its id stays unique.
        self.met: dict[int, tuple[Any, str]] = {}
        self.places = Counter[str]()
        self.classes: dict[tuple[str, type], str] = {}
        self.depth = 0

    def add(self, name: str, value: Any, of: str | None = None) -> None:
        """Describe a value under a name; what it refers to gets names of its own.

        Of several objects at the place ``of``, the number of the last one is added.
        """
        number = f"{self.places[of]} " if of and "[]" in of else ""
        text = self.text(value, name)
        self.parts[name].add(number + text)

    def text(self, value: Any, name: str) -> str:
        """Describe a value in itself, without the attributes of the objects that it refers to."""
        plain = as_json(value)
        if plain is not None:
            return brief(plain)
        if id(value) in self.met:
            return self.met[id(value)][1]
        if self.depth > MAX_DEPTH:
            return type_name(value)
        leaf = self.leaves.text(value)
        self.places[name] += 1
        self.met[id(value)] = value, leaf or f"as {name} {self.places[name]}"
        if leaf is not None:
            return leaf
        self.depth += 1
        try:
            return self._walk(value, name)
        finally:
            self.depth -= 1

    def _walk(self, value: Any, name: str) -> str:
        if isinstance(value, np.ndarray):
            return f"objects {value.shape} {self.text(value.tolist(), name)}"
        if isinstance(value, Mapping):
            return self._mapping(value, name)
        if isinstance(value, (list, tuple, deque)):
            each = [self.text(item, f"{name}[]").encode() for item in value]
            return f"{len(each)} items {joined('sequence', each).hex()}"
        if isinstance(value, (set, frozenset)):
            each = sorted(self._whole(item) for item in value)
            return f"{len(each)} members {joined('set', each).hex()}"
        if isinstance(value, functools.partial):
            self.add(f"{name}.arguments", [value.args, value.keywords])
            return f"partial of {self.text(value.func, f'{name}.function')}"
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if isinstance(value, type):
            return self._code(describe_class(value, whole=True), name)
        if callable(value) and hasattr(value, "__qualname__"):
            owner = getattr(value, "__self__", None)
            if owner is not None and not isinstance(owner, (type, ModuleType)):
                self.add(f"{name}.self", owner)
            return self._code(describe_function(value), name)
        return self._object(value, name)

    def _whole(self, value: Any) -> bytes:
        """Describe a value with all that it refers to, for places where the order is random."""
        walk = _Walk(self.ignore, weights=self.weights)
        walk.depth = self.depth
        walk.add("", value)
        return _hash_of({name: part.text for name, part in sorted(walk.parts.items())}).encode()

    def _mapping(self, value: Mapping[Any, Any], name: str) -> str:
        kept = {key: item for key, item in value.items() if key not in self.ignore}
        if len(kept) <= MOST_KEYS and all(isinstance(key, str) for key in kept):
            for key, item in sorted(kept.items()):
                self.add(f"{name}.{key}", item, of=name)
            each = [key.encode() for key in sorted(kept)]
        else:
            pairs = sorted(
                ((as_json(key) or self._whole(key), item) for key, item in kept.items()),
                key=lambda pair: pair[0],
            )
            each = [part for key, item in pairs
                    for part in (key, self.text(item, f"{name}[]").encode())]  # fmt: skip
        return f"{type_name(value)} of {len(each)} {joined('mapping', each).hex()}"

    def _object(self, value: Any, name: str) -> str:
        if is_table(value):
            described, size = describe_table(value, self.leaves.budget)
            self.leaves.budget -= size
            return f"table {self.text(described, name)}"
        if type(value).__module__.split(".")[0] == "pandas":
            return f"frame {self.text(describe_frame(value), name)}"
        if is_timm(value):
            self.add(f"{name}.reader", value.reader)
            return "timm's dataset"
        home = type(value).__module__.split(".")[0]
        if home in OPAQUE_MODULES:
            return type_name(value)
        attributes = _attributes(value)
        if not attributes and not hasattr(value, "__dict__"):
            return f"{type_name(value)} {without_addresses(value)}"
        text = self._code_of_class(value, name, attributes)
        of_a_model = home in ("transformers", "timm")
        for key, item in sorted(attributes.items()):
            if not self._is_ignored(key, item) and not (of_a_model and not is_setting(key)):
                self.add(f"{name}.{key}", item, of=name)
        return text

    def _is_ignored(self, name: str, value: object) -> bool:
        stripped = "transform" in self.ignore and is_image_transform(name, value)
        return name in self.ignore or stripped

    def _code_of_class(self, value: Any, name: str, hidden: Collection[str]) -> str:
        """Describe the class of an object, once a name; its attributes hide those of the class."""
        if (name, type(value)) in self.classes:
            return self.classes[name, type(value)]
        code = describe_class(type(value))
        self.classes[name, type(value)] = code.text
        shown = {k: v for k, v in code.values.items()
                 if k not in hidden and not self._is_ignored(k, v)}  # fmt: skip
        return self._code(Code(code.text, shown), name)

    def _code(self, code: Code, name: str) -> str:
        for key, used in sorted(code.values.items()):
            self.add(f"{name}.{key}", used)
        return code.text

    def _module(self, model: nn.Module, name: str) -> str:
        texts = list[str]()
        modules = list(plain_modules(model))
        for inner, module in modules:
            place = f"{name}.{inner}" if inner else name
            self.met[id(module)] = module, f"as {place}"
        done = set[int]()
        for inner, module in modules:
            place = f"{name}.{inner}" if inner else name
            if id(module) in done:
                texts.append(self.met[id(module)][1])
            else:
                done.add(id(module))
                texts.append(self._one_module(module, place))
            if inner:
                self.parts[place].add(texts[-1])
        state = {n.replace("_orig_mod.", ""): t for n, t in model.state_dict().items()}
        tensors = [[n, self.text(t, name) if self.weights else shape_of(t)]
                   for n, t in sorted(state.items())]  # fmt: skip
        self.add(f"{name} {'weights' if self.weights else 'shapes'}", tensors)
        return texts[0]

    def _one_module(self, module: nn.Module, name: str) -> str:
        settings = {k: v for k, v in settings_of(module).items() if k not in self.ignore}
        text = self._code_of_class(module, name, settings) + module_text(module)
        for key, value in sorted(settings.items()):
            if is_library_class(type(module)):  # too many to have a name each
                self.parts[f"{name} settings"].add(f"{key} {self.text(value, f'{name}.{key}')}")
            else:
                self.add(f"{name}.{key}", value)
        return text


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes of an object, ``__slots__`` included, without values of a ``cached_property``."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    derived = _derived(type(value))  # type: ignore[arg-type]
    return {str(name): item for name, item in found.items() if name not in derived}


@functools.lru_cache
def _derived(kind: type) -> frozenset[str]:
    """Names of a class' cached properties, whose values are there only after a first read."""
    members = [item for each in kind.__mro__ for item in vars(each).items()]
    return frozenset(
        name for name, value in members if isinstance(value, functools.cached_property)
    )
