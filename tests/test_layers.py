"""Who may import whom: ground first, and no arrow upwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cgd_wrap

ROOT = Path(cgd_wrap.__file__).parent
# Each room may import from the rooms before it, and from itself.
LAYERS = (
    "escaping", "errors", "randomness", "processes", "files", "functional", "config", "sealed",
    "data", "models", "clip", "attacks", "scan", "split", "train", "metrics", "report", "adapters",
    "guard", "drill", "demo", "backdoorbench", "moved", "cgd_wrap", "cli",
)  # fmt: skip


def room_of(module: str) -> str:
    """The part below ``cgd_wrap`` that a module stands in; the package itself is a room, too."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import of the package, in functions and for types alone, too."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "cgd_wrap":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cgd_wrap":
                    yield node.lineno, alias.name


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = sorted(ROOT.rglob("*.py"))
MODULES = {module_of(file) for file in FILES}


def test_every_room_has_its_place() -> None:
    assert {room_of(module_of(file)) for file in FILES} == set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_imports_from_below(file: Path) -> None:
    own = LAYERS.index(room_of(module_of(file)))
    upwards = [
        f"line {line}: {module}"
        for line, module in imports_of(file)
        if room_of(module) not in LAYERS or LAYERS.index(room_of(module)) > own
    ]
    assert not upwards


def test_no_circle_of_modules() -> None:
    modules = {module_of(file): {m for _, m in imports_of(file)} for file in FILES}
    edges = {
        name: {target for target in targets if target in modules and target != name}
        for name, targets in modules.items()
    }
    while leaves := [name for name, targets in edges.items() if not targets]:
        for leaf in leaves:
            del edges[leaf]
        for targets in edges.values():
            targets.difference_update(leaves)
    assert not edges, f"these import each other: {sorted(edges)}"


def test_only_the_drills_door_is_imported_by_name() -> None:
    """The one way upwards: ``CGDGuard.drill``, as the drill is an experiment on guards."""
    found = []
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                for given in node.args:
                    if isinstance(given, ast.Constant) and str(given.value).startswith("cgd_wrap"):
                        found.append((module_of(file), given.value))
    assert found == [("cgd_wrap.guard", "cgd_wrap.drill")]


def test_the_top_has_at_most_25_rooms() -> None:
    rooms = [p for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert len(rooms) <= 25


def functions_of(file: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines of code without docstring, and parameters of each function."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            own = [a.arg for a in node.args.args + node.args.kwonlyargs]
            yield node.name, lines, len([name for name in own if name not in ("self", "cls")])


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_functions_and_signatures_can_be_seen_whole(file: Path) -> None:
    facade = file.name == "guard.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= (340 if facade else 300)
    for name, lines, parameters in functions_of(file):
        assert lines <= 60, name
        assert parameters <= 12 or (facade and name == "__init__"), name
