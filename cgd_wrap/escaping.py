"""Making foreign text (class names, paths) safe to show, to log, and to open in a spreadsheet."""

from __future__ import annotations

import logging
import unicodedata

# Categories of characters that steer a terminal, hide, or reorder the text around them:
# "photo\u202egpj.exe" would read as an image. Line breaks are among them: a name can't forge a
# second line of the log.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of category Cf, but parts of ordinary writing and of emoji
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    r"""Write control, bidirectional and undecodable characters as escapes, such as ``\x0a``.

    Letters of all scripts and emoji stay as they are. Escaping a text twice changes nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_hidden(c) else c for c in text)


def brief(error: BaseException) -> str:
    """Shorten an error to one escaped line, to quote inside another error."""
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {text[:300]}".rstrip(".: "))


def csv_text(text: str) -> str:
    """Change a text so that no spreadsheet takes it for a formula; escape control characters."""
    text = printable(text)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def escaped_logger(name: str) -> logging.Logger:
    """Return the logger of that name, which escapes all that it logs, before any handler sees it.

    A logger's filters don't hold for the loggers below it, so every module needs this function in
    place of ``logging.getLogger``.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_escape_record)
    return logger


def _escape_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
