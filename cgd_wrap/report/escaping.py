"""Making foreign text (class names, paths) safe to show, and to open in a spreadsheet."""

from __future__ import annotations

import unicodedata

# Marks that reorder or hide the text around them: "photo\u202egpj.exe" would read as an image.
_BIDI = {chr(c) for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_INVISIBLE = {"\u200b", "\u2060", "\ufeff"}
_UNSHOWN = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    r"""Write control, bidirectional and undecodable characters as escapes, such as ``\x0a``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_hidden(c) else c for c in text)


def csv_text(text: str) -> str:
    """Change a text so that no spreadsheet takes it for a formula; escape control characters."""
    text = printable(text)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _is_hidden(character: str) -> bool:
    return (
        character in _BIDI or character in _INVISIBLE or unicodedata.category(character) in _UNSHOWN
    )


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
