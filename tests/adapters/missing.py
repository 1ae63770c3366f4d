"""What is said where an optional package is missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import pytest

from cgd_wrap.errors import MissingExtraError


def told_without(monkeypatch: pytest.MonkeyPatch, packages: Sequence[str], module: str) -> str:
    """What MissingExtraError says when a module is imported where these packages are missing."""
    for name in {*packages, *sys.modules}:
        if name.partition(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(module)
    return str(caught.value)
