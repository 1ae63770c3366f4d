"""FAULTS rows 15 and 44: foreign text cannot act, hide or reorder."""

from __future__ import annotations

import ast
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cgd_wrap
from cgd_wrap import errors
from cgd_wrap.backdoorbench import errors as more_errors
from cgd_wrap.escaping import brief, csv_text, escaped_logger, printable

SOURCES = sorted(Path(cgd_wrap.__file__).parent.rglob("*.py"))
# What such names stand for is foreign: paths, and what other libraries say of foreign files.
FOREIGN = {"path", "file", "folder", "root", "place", "where", "source", "error", "model_name"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("naïve café ☃ العربية", "naïve café ☃ العربية"),
        ("line\nbreak\ttab\x1b[31m", r"line\x0abreak\x09tab\x1b[31m"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("not utf-8: \udcff", r"not utf-8: \udcff"),
        ("\u2028\ufeff", r"\u2028\ufeff"),
        ("soft\u00adhyphen, tag \U000e0041", r"soft\xadhyphen, tag \U000e0041"),
        ("Äpfel 猫 👩\u200d🔬 می\u200cخواهم", "Äpfel 猫 👩\u200d🔬 می\u200cخواهم"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_holds_nothing_hidden(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {c for c in shown if unicodedata.category(c) == "Cf"} - {"\u200c", "\u200d"}
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in shown)
    assert printable(shown) == shown
    shown.encode("utf-8")


@given(st.text())
def test_no_cell_starts_a_formula(text: str) -> None:
    assert not csv_text(text).lstrip().startswith(("=", "+", "-", "@"))


def test_formula_cells_are_prefixed() -> None:
    assert csv_text('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert csv_text(" @x") == "' @x"
    assert csv_text("\t=1") == r"\x09=1"
    assert csv_text("a=b") == "a=b"


def test_a_quoted_error_is_one_escaped_line() -> None:
    assert brief(ValueError("a\n  b\x1b[2J.")) == r"ValueError: a b\x1b[2J"
    assert len(brief(ValueError("x" * 1000))) < 350


def test_a_logger_escapes_what_it_logs(caplog: pytest.LogCaptureFixture) -> None:
    logger = escaped_logger("cgd_wrap.some.module")
    assert escaped_logger("cgd_wrap.some.module") is logger is logging.getLogger(logger.name)
    assert len(logger.filters) == 1
    logger.warning("%s, %d%% of %r", "a\nb\x1b[2J", 5, Path("\u202e"))
    logger.warning("as it is: %s")
    first, second = caplog.records
    assert first.getMessage() == r"a\x0ab\x1b[2J, 5% of PosixPath('\u202e')"
    assert second.getMessage() == "as it is: %s"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_modules_log_and_raise_no_foreign_text_raw(file: Path) -> None:
    """Every logger escapes; errors that don't escape their message quote foreign text by ``!r``."""
    text = file.read_text(encoding="utf-8")
    assert "logging.getLogger(__name__)" not in text
    escaping = {name for home in (errors, more_errors) for name in vars(home)}
    for node in ast.walk(ast.parse(text)):
        call = node.exc if isinstance(node, ast.Raise) else None
        if not isinstance(call, ast.Call) or ast.unparse(call.func) in escaping:
            continue
        raw = [
            ast.unparse(value)
            for value in ast.walk(call)
            if isinstance(value, ast.FormattedValue) and value.conversion != ord("r")
            and ast.unparse(value.value) in FOREIGN
        ]  # fmt: skip
        assert not raw, f"line {node.lineno}: {raw}"
