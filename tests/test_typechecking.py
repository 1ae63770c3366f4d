"""The tests see a wrong type or shape wherever one passes through the package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typechecking import checking

from cgd_wrap.functional.scores import label_nll

SOURCE = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def added(first: Float[Tensor, "n"], second: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return first + second


def halved(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return values[::2]


def scaled(values: Float[Tensor, "n"], factor: float) -> float:
    return factor


class Reader:
    @property
    def size(self) -> Float[Tensor, ""]:
        return torch.zeros(2)

    @classmethod
    def of(cls, values: Float[Tensor, "n"]) -> Reader:
        return cls()


@dataclass(frozen=True)
class Pair:
    first: Float[Tensor, "n"]
    second: Float[Tensor, "n"]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "wrongly_typed.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrongly_typed", raising=False)
    with checking("wrongly_typed"):
        import wrongly_typed

    return wrongly_typed


def test_wrong_types_beside_shapes_are_refused(module: ModuleType) -> None:
    values = torch.zeros(2)
    assert module.scaled(values, 1) == 1  # as for mypy, an int will do for a float
    with pytest.raises(TypeError, match="factor"):
        module.scaled(values, "1")
    with pytest.raises(TypeError, match="return"):
        module.Reader().size  # noqa: B018
    with pytest.raises(TypeError, match="values"):
        module.Reader.of(3)


def test_an_axis_has_one_length_in_a_call(module: ModuleType) -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    assert module.added(two, two).shape == (2,)
    assert module.added(three, three).shape == (3,)  # another call, another length
    with pytest.raises(TypeError, match="second"):
        module.added(two, three)
    with pytest.raises(TypeError, match="return"):
        module.halved(three)
    with pytest.raises(TypeError, match="second"):
        module.Pair(two, three)
    with pytest.raises(TypeError, match="first"):
        module.added(two.int(), two)


def test_nothing_is_checked_where_production_is_tested(module: ModuleType, unchecked: None) -> None:
    assert module.scaled(3, "1") == "1"
    assert module.halved(torch.zeros(3)).shape == (2,)


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeError, match="labels"):
        label_nll(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
