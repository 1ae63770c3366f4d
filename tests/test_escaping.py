"""FAULTS rows 15 and 44: foreign text cannot act, hide or reorder."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.escaping import csv_text, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("naïve café ☃ العربية", "naïve café ☃ العربية"),
        ("line\nbreak\ttab\x1b[31m", r"line\x0abreak\x09tab\x1b[31m"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("not utf-8: \udcff", r"not utf-8: \udcff"),
        ("\u2028\ufeff", r"\u2028\ufeff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_holds_nothing_hidden(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
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
