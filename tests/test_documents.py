"""Documents point at what is there, name nothing that has gone, and belong to each other."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for place in ("*.md", "docs/*.md", "integrations/*/*.md", "examples/results/*.md")
    for path in ROOT.glob(place)
)  # fmt: skip
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")
MODULE = re.compile(r"`(cgd_wrap(?:\.\w+)+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text()):
        goal = (path.parent / target).resolve() if target else path
        assert goal.exists(), target
        if anchor:
            assert anchor[1:] in anchors_of(goal.read_text()), target + anchor


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_modules_exist(path: Path) -> None:
    text = path.read_text()
    if path.name == "CHANGELOG.md":  # names old paths, too
        text = re.sub(r"^ *\| `.*$", "", text, flags=re.M)
    for name in MODULE.findall(text):
        resolve_name(name)  # an old path would warn, which is an error here


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=name_of)
def test_python_in_documents_can_be_parsed(path: Path) -> None:
    for block in re.findall(r"^ *```python\n(.*?)^ *```", path.read_text(), re.M | re.S):
        ast.parse(textwrap.dedent(block))


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    walk = text[text.index("## The walk of a sample") : text.index("## What lies where")]
    files = re.findall(r"`(\w+/\w+\.py)`", walk)
    assert len(files) > 20
    assert [file for file in files if not (ROOT / "cgd_wrap" / file).is_file()] == []


def test_the_readme_holds_the_test_command() -> None:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- test command -->\n```bash\n(.+)\n```", text)  # as .ci/run reads it
    assert found
    assert found[1].startswith("python3 -m venv .venv && ")


def test_the_pages_made_from_the_code_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.pages():
        assert path.read_text(encoding="utf-8") == text, "run python docs/make_tables.py"
