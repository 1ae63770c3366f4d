"""Import paths of version 0.1 that have moved: they work until version 0.3, with a warning.

Those that README, integrations or examples ever named are here, and those that stand in pickles of
the public classes.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the modules that hold its names now, in the order in which they are searched.
MOVED: dict[str, tuple[str, ...]] = {
    "cgd_wrap.loss": ("cgd_wrap.train.loss",),
    "cgd_wrap.sampler": ("cgd_wrap.train.sampler",),
    "cgd_wrap.dataset": ("cgd_wrap.train.dataset", "cgd_wrap.train.tags"),
    "cgd_wrap.entropy": ("cgd_wrap.split.entropy_map",),
    "cgd_wrap.cache": ("cgd_wrap.files", "cgd_wrap.scan.store"),
    "cgd_wrap.suspicious": (
        "cgd_wrap.scan.suspicious_training", "cgd_wrap.models.weights", "cgd_wrap.randomness",
    ),
    "cgd_wrap.teachers": ("cgd_wrap.clip.several", "cgd_wrap.scan.stored_logits"),
    "cgd_wrap.demo.network": ("cgd_wrap.models.small_resnet",),
    "cgd_wrap.demo.experiment": ("cgd_wrap.drill",),
    "cgd_wrap.views": ("cgd_wrap.data",),
    "cgd_wrap.views.class_names": ("cgd_wrap.data.class_names",),
    "cgd_wrap.adapters.backdoorbench": ("cgd_wrap.backdoorbench",),
    "cgd_wrap.adapters.backdoorbench.networks": ("cgd_wrap.backdoorbench.networks",),
}  # fmt: skip


def answer_old_imports() -> None:
    """Let Python's import system find the old paths."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())  # at the end: existing modules are found first


class _OldPaths(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module of an old path; None for all other paths."""
        if fullname not in MOVED:
            return None
        return ModuleSpec(
            fullname, self, is_package=any(m.startswith(f"{fullname}.") for m in MOVED)
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make a module whose names are looked up in the new places."""
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Warn that the module has moved; the module has no code of its own to run."""
        name = module.__name__
        places = " or ".join(MOVED[name])
        warnings.warn(
            f"{name} has moved to {places}; the old path goes with cgd-wrap 0.3",
            DeprecationWarning, stacklevel=2,
        )  # fmt: skip


class _Moved(ModuleType):
    def __dir__(self) -> list[str]:
        """The public names of the new places."""
        places = map(importlib.import_module, MOVED[self.__name__])
        return sorted({name for place in places for name in dir(place) if name[0] != "_"})

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # for "from cgd_wrap.cache import *"
            return dir(self)
        if not name.startswith("__"):
            for place in MOVED[self.__name__]:
                module = importlib.import_module(place)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
