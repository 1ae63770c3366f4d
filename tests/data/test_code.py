from __future__ import annotations

import functools
import operator
import runpy
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from launching import run_python
from torch import nn

from cgd_wrap.data.fingerprint import parts

STRENGTH = 3
READS = 0


def defined(text: str, name: str = "made", **given):
    """What a script of the user's defines, in a module of its own."""
    module = types.ModuleType("script")
    vars(module).update(given)
    exec(compile(text, "script.py", "exec"), vars(module))
    return vars(module)[name]


def described(value) -> dict[str, str]:
    return parts(value, "code", ignore=())


def assert_differ(*values) -> None:
    texts = [tuple(described(value).items()) for value in values]
    assert len(set(texts)) == len(values)


def test_the_same_code_is_the_same_wherever_it_stands():
    plain = defined("def made(x):\n    return x + 1")
    moved = defined(
        '\n\n# a comment\ndef made(x):\n    """With a docstring."""\n\n    return x + 1', "made"
    )
    renamed = defined("def other(y):\n    return y + 1", "other")
    assert described(plain) == described(renamed)
    if sys.version_info < (3, 13):  # later, a docstring moves the constants
        assert described(plain) == described(moved)
    assert described(plain) == described(defined("made = lambda x: x + 1"))


def test_bodies_constants_and_nested_code_count():
    assert_differ(
        *(
            defined(f"def made(x):\n    return {body}")
            for body in ("x + 1", "x + 2", "x + 1.0", "x - 1", "x.a", "x.b", "x + True")
        ),
        *(defined(f"def made(x):\n    return [y + {n} for y in x]") for n in (1, 2)),
        *(defined(f"def made(x):\n    return (lambda z: z * {n})(x)") for n in (1, 2)),
        *(defined(f"def made(x, *, y={n}):\n    return x + y") for n in (1, 2)),
        *(defined(f"def made(x, y={n}):\n    return x + y") for n in (1, 2)),
    )


def test_closures_partials_and_decorated_functions_count_by_their_values():
    def add(number):
        return lambda x: x + number

    assert described(add(1)) == described(add(1))
    assert described(add(1))["code.number"] == "1"
    assert_differ(
        add(1), add(2), functools.partial(max, 1), functools.partial(max, 2),
        functools.partial(add, 1), functools.partial(add(2), 1), functools.partial(add(3), 1),
        operator.itemgetter(0), operator.itemgetter(1), functools.lru_cache(add(9)),
        torch.no_grad()(add(2)), torch.no_grad()(add(3)),
    )  # fmt: skip


def test_a_librarys_code_counts_by_its_name():
    assert described(F.relu) == {"code": "torch.nn.functional.relu"}
    assert_differ(F.relu, torch.relu, torch.tanh, torch.sigmoid, len)


def test_global_constants_and_helpers_count_if_they_are_used():
    text = "def help(x):\n    return x * {n}\ndef made(x):\n    return help(x) + STRENGTH"
    one, other = text.format(n=1), text.format(n=2)
    assert described(defined(one, STRENGTH=1)) == described(defined(one, STRENGTH=1, UNUSED=5))
    assert_differ(
        defined(one, STRENGTH=1), defined(one, STRENGTH=2), defined(other, STRENGTH=1),
        defined(one, STRENGTH=torch.ones(2)), defined(one, STRENGTH=torch.zeros(2)),
    )  # fmt: skip


def test_what_code_itself_sets_is_state():
    text = "READS = {n}\ndef made(x):\n    global READS\n    READS += 1\n    return x"
    assert described(defined(text.format(n=1))) == described(defined(text.format(n=2)))

    def counting(count):
        def made(x):
            nonlocal count
            count += 1
            return x

        return made

    assert described(counting(1)) == described(counting(7))


def test_all_arguments_of_a_script_are_no_constants_of_its_functions():
    from argparse import Namespace

    text = "def made(x):\n    return x[: args.size]"
    first, resumed = Namespace(size=3, resume=None), Namespace(size=3, resume="last.pt")
    assert described(defined(text, args=first)) == described(defined(text, args=resumed))


def test_settings_in_an_object_count_if_they_are_used():
    from types import SimpleNamespace as Settings

    def settings(size: int) -> Settings:
        held = Settings(image=Settings(size=size, path=Settings(b=size)), reads=size)
        held.itself = held
        return held

    text = "def made(x):\n    SET.reads += 1\n    return x[: SET.image.size]"
    found = described(defined(text, SET=settings(3)))
    assert sorted(found) == ["code", "code.SET.image.size"]
    assert_differ(defined(text, SET=settings(3)), defined(text, SET=settings(4)))
    text = "class made:\n    SET = SETTINGS\n    def __call__(self, x):\n        return {}"
    text = text.format("x[: self.SET.image.size]")
    assert_differ(*(defined(text, SETTINGS=settings(size)) for size in (3, 4)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_tensors_in_compiled_code_count():
    def traced(factor: float) -> Any:
        return torch.jit.trace(lambda x: factor * x, torch.ones(2))

    def frozen(seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(9, 9)).eval()))

    for made in (traced, frozen):
        assert described(made(1)) == described(made(1))
        assert_differ(made(1), made(2))


def test_a_module_of_the_users_counts_by_what_is_used_of_it(monkeypatch):
    def helpers(n: int) -> types.ModuleType:
        module = types.ModuleType("own_helpers")
        exec(f"def crop(x):\n    return x[:{n}]\ndef other(x):\n    return {n}", vars(module))
        return module

    text = "def made(x):\n    return helpers.crop(x)"
    assert_differ(defined(text, helpers=helpers(1)), defined(text, helpers=helpers(2)))


CLASS = """
class made:
    scale = {scale}
    unused = {unused}
    def __init__(self):
        self.x = 1
    def __call__(self, image):
        return self.helper(image) * self.scale
    def helper(self, image):
        return image {operation}
    def plot(self):
        return {unused}
"""


@pytest.mark.parametrize(
    ("change", "same"),
    [({"unused": 2}, True), ({"scale": 2}, False), ({"operation": "- 1"}, False)],
)
def test_an_object_counts_by_the_methods_that_run(change, same):
    plain = {"scale": 1, "unused": 1, "operation": "+ 1"}
    before = described(defined(CLASS.format(**plain))())
    assert (described(defined(CLASS.format(**plain | change))()) == before) is same


def test_a_base_class_and_a_method_that_replaces_another_count():
    text = """
class base:
    def __call__(self, x):
        return self.step(x)
    def step(self, x):
        return x + {base}
class made(base):
    def step(self, x):
        return super().step(x) * {own}
"""
    objects = [defined(text.format(base=base, own=own))() for base, own in ((1, 1), (2, 1), (1, 2))]
    assert_differ(*objects)


def test_code_is_described_alike_in_another_process(tmp_path, capsys):
    script = (
        "from cgd_wrap.data.fingerprint import parts\n"
        "SIZES = {'a': 1, 'b': 2}\n"
        "def outer(n):\n    def inner(x):\n        return x in {'p', 'q', 'r', n} and SIZES['a']\n"
        "    return inner\n"
        "class T:\n    def __call__(self, x):\n        return outer(3)(x)\n"
        "print(parts([outer(2), T(), {outer: 1}], 'x'))\n"
    )
    (tmp_path / "moved.py").write_text("\n\n" + script)
    elsewhere = run_python(str(tmp_path / "moved.py"))  # sets have another order there
    (tmp_path / "run.py").write_text(script)
    runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    assert capsys.readouterr().out == elsewhere
    assert "code" in elsewhere
