"""How a command talks, and how it ends: a line for what the user can mend, and an exit code."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from safetensors import SafetensorError

from cgd_wrap.errors import CGDError
from cgd_wrap.escaping import printable

USER_ERRORS = (CGDError, ValueError, TypeError, OSError, SafetensorError)
# What messages of the library call by its name in Python, and its name here.
OPTIONS = (
    (r'config=CGDConfig\(on_bad_sample="record"\)', "--on-bad-sample record"),
    (r"overwrite=True to scan\(\)", "--overwrite"),
    (r"(?<=[ (])class_names=?(?=[ ,.;:)]|$)", "--class-names"),
    (r"(?<=[ (])num_workers=?(?=[ ,.;:)]|$)", "--workers"),
    (r"(?<=[ (])clip=(?=[ ,.;:)\[]|$)", "--clip"),
    (r"(?<=[ (])prompts='openai'", "prompts: openai in the file of --config"),
    (r"(?<=[ (])allow_missing_classes=True", "allow_missing_classes: true in the file of --config"),
)


def in_options(text: str) -> str:
    """Put the command line's options in place of the Python arguments that a message names."""
    for argument, option in OPTIONS:
        text = re.sub(argument, option, text)
    return text


def say(text: str) -> None:
    """Print lines on stdout, escaped; nothing happens if nobody reads stdout any more."""
    try:
        for line in text.split("\n"):
            print(printable(line), flush=True)
    except BrokenPipeError:  # the reader has left, as head does; the files are still to be written
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run(command: Callable[[], None], *, debug: bool, goes_on: bool) -> int:
    """Run a command and return its exit code: 0, 1 after an error, 130 or 143 if interrupted.

    Args:
        command: the command.
        debug: let errors through, with their traceback.
        goes_on: the command can be started again, and goes on with what is done.
    """
    try:
        with _stopped_by_sigterm():
            command()
    except USER_ERRORS as error:
        if debug:
            raise
        _complain(_described(error))
        return 1
    except KeyboardInterrupt as stop:
        how = "what is done is kept: the same command goes on" if goes_on else "nothing is kept"
        _complain(f"interrupted; {how}")
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return 0


def prepare_output() -> None:
    """Log to stderr, and let no character that the terminal can't show end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(handlers=[_ToStderr()])
    logging.getLogger("cgd_wrap").setLevel(logging.INFO)  # other libraries: warnings only


class _ToStderr(logging.Handler):
    """Shows records on what ``sys.stderr`` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(in_options(record.getMessage())), file=sys.stderr, flush=True)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that files and workers are left in order."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)!r}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_options(" ".join(str(error).split())) or type(error).__name__


def _complain(text: str) -> None:
    print(f"cgd-wrap: {printable(text)}", file=sys.stderr)
