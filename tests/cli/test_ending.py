from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading

import pytest

from cgd_wrap.cli import ending
from cgd_wrap.errors import BadSampleError, CacheMismatchError, CGDError
from cgd_wrap.files import check_fingerprint


def ended(error: BaseException, **options) -> int:
    def command() -> None:
        raise error

    return ending.run(command, **{"debug": False, "goes_on": False, **options})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CGDError("a\x1b[2J\nb"), r"a\x1b[2J\x0ab"),
        (ValueError("a\x1b[2J\nb"), r"a\x1b[2J b"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file", b"/x\xff\n"), r"'/x\udcff\n': No such file"),
        (OSError(errno.ENOSPC, "no space for /x: 5 bytes needed, 0 free"), "no space for /x: 5 "
         "bytes needed, 0 free"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line(error, line, capsys):
    assert ended(error) == 1
    assert capsys.readouterr() == ("", f"cgd-wrap: {line}\n")


def test_debug_shows_all(capsys):
    with pytest.raises(ValueError, match="broken"):
        ended(ValueError("broken"), debug=True)


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError())


@pytest.mark.parametrize(
    ("goes_on", "how"), [(True, "the same command goes on"), (False, "nothing is kept")]
)
def test_ctrl_c(goes_on, how, capsys):
    assert ended(KeyboardInterrupt(), goes_on=goes_on) == 130
    error = capsys.readouterr().err
    assert how in error
    assert error.count("\n") == 1


def test_sigterm_ends_it_in_order(capsys):
    left: list[str] = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            left.append("in order")

    before = signal.getsignal(signal.SIGTERM)
    assert ending.run(command, debug=False, goes_on=True) == 143
    assert left == ["in order"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert "interrupted" in capsys.readouterr().err


def test_it_runs_in_any_thread():
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(ending.run(lambda: None, debug=False, goes_on=False))
    )
    thread.start()
    thread.join()
    assert codes == [0]


def test_messages_name_options(tmp_path):
    shown = ending.in_options(str(BadSampleError(3, "empty", "no bytes")))
    assert shown.endswith("or pass --on-bad-sample record to leave such samples out of training.")
    with pytest.raises(CacheMismatchError) as caught:
        check_fingerprint(tmp_path, {"a": 1}, {"a": 2})
    assert "or pass --overwrite to replace it" in ending.in_options(str(caught.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Pass class_names= with one", "Pass --class-names with one"),
        ("Try other class_names, or", "Try other --class-names, or"),
        ("Try fewer num_workers.", "Try fewer --workers."),
        ("(prompts='openai')", "(prompts: openai in the file of --config)"),
        ("; allow_missing_classes=True goes on", "; allow_missing_classes: true in the file of "
         "--config goes on"),
        ("'/data/class_names.txt'", "'/data/class_names.txt'"),
        ("x_class_names", "x_class_names"),
    ],
)  # fmt: skip
def test_words_of_python_become_options(text, shown):
    assert ending.in_options(text) == shown


def test_what_is_said_is_escaped_line_by_line(capsys):
    ending.say("two\nlines\x1b]0;title\x07")
    assert capsys.readouterr().out == "two\nlines\\x1b]0;title\\x07\n"


def test_a_terminal_that_shows_ascii_alone(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    ending.prepare_output()
    ending.say("Kr\xe4he \u732b \udce4")
    assert terminal.buffer.getvalue() == rb"Kr\xe4he \u732b \udce4" + b"\n"


def test_a_reader_that_leaves_ends_nothing(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for _ in range(3):
            ending.say("a line")  # the first fails, and closing the stream would, too
