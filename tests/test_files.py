"""Files are written whole or not at all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filled_store import filled
from launching import start_python

from cgd_wrap.files import write_atomically


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_umask_decides_the_mode(tmp_path: Path, mask: int, mode: int) -> None:
    os.umask(mask)
    filled(tmp_path)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}


WRITER = """
import sys
from pathlib import Path
from cgd_wrap.files import write_atomically
path, byte = Path(sys.argv[1]), sys.argv[2].encode()
Path(sys.argv[3]).touch()
while True:
    write_atomically(path, byte * (1 << 22))
"""


def test_a_killed_writer_leaves_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "00000.safetensors"
    ready = [tmp_path / "ready a", tmp_path / "ready b"]  # two of them at once
    writers = [start_python("-c", WRITER, str(path), file.name[-1], str(file)) for file in ready]
    while not all(file.exists() for file in ready):
        assert all(writer.poll() is None for writer in writers), "a writer has failed"
        time.sleep(0.01)
    time.sleep(0.2)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert path.read_bytes() in (b"a" * (1 << 22), b"b" * (1 << 22))
    (tmp_path / ".00001.safetensors.1-0a.tmp").write_bytes(b"left by a killed process")
    store = filled(tmp_path)
    assert store.is_complete()
    assert (tmp_path / "00000.safetensors").read_bytes() != b"a" * (1 << 22)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
