"""Files are written whole or not at all."""

from __future__ import annotations

import ast
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filled_store import filled
from launching import start_python
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net

import cgd_wrap
from cgd_wrap import CGDConfig, CGDGuard, StoredFileError, files
from cgd_wrap.files import check_folder, write_atomically
from cgd_wrap.models.weights import write_weights


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
    store = filled(tmp_path)
    assert store.is_complete()
    assert not list(tmp_path.glob(".*"))  # what the two left
    assert (tmp_path / "00000.safetensors").read_bytes() != b"a" * (1 << 22)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def left_by(folder: Path, host: str, process: int, *, hours: float = 0) -> Path:
    """A temporary file of a write that was killed some hours ago."""
    path = folder / f".00001.safetensors.{host}.{process}-0123abcd.tmp"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    return path


@pytest.fixture
def ended() -> int:
    """Number of a process that has ended."""
    process = start_python("-c", "")
    process.communicate()
    return process.pid


OTHER_HOST = "00000000"


@pytest.mark.parametrize("opening", [filled, lambda folder: write_atomically(folder / "a", b"")])
def test_what_killed_processes_left_is_cleared_away(
    tmp_path: Path, ended: int, opening: Callable[[Path], object]
) -> None:
    """By opening a store, also a finished one, and by any other write into the folder."""
    filled(tmp_path)
    gone = [left_by(tmp_path, files._host(), ended), left_by(tmp_path, OTHER_HOST, 1, hours=25)]
    kept = [
        left_by(tmp_path, files._host(), os.getppid()),  # it may be writing
        left_by(tmp_path, OTHER_HOST, ended, hours=23),
        tmp_path / ".mine.tmp",
    ]
    kept[-1].write_text("a user's file")
    os.utime(kept[-1], (0, 0))
    opening(tmp_path)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_process_of_a_number_that_no_process_can_have_counts_as_running() -> None:
    assert files._is_running(2**70)
    assert files._is_running(os.getpid())


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"somebody's")
    (tmp_path / "file").symlink_to(outside)
    write_atomically(tmp_path / "file", b"new")
    assert outside.read_bytes() == b"somebody's"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_may_be_missing_or_a_link_within_its_parent(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_folder(tmp_path / "link")
    (tmp_path / "out").symlink_to("..")
    with pytest.raises(StoredFileError, match="is a link to"):
        check_folder(tmp_path / "out")


# --- full disks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=quick_config(), progress=False
    ).scan()


WRITERS: dict[str, Callable[[CGDGuard, Path], object]] = {
    "settings": lambda guard, folder: CGDConfig().to_yaml(folder / "a.yaml"),
    "weights": lambda guard, folder: write_weights(guard.model, folder / "a.safetensors"),
    "guard": lambda guard, folder: guard.save(folder),
    "report": lambda guard, folder: guard.report(folder),
    "export": lambda guard, folder: guard.export(folder),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_nothing_and_says_need_and_have(
    writer: str, code: int, guard: CGDGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 33 of FAULTS.md, for what is written beside the cache."""

    def full(number: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space .*: \d+ bytes needed, \d+ free on the disk"):
        WRITERS[writer](guard, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


PACKAGE = Path(cgd_wrap.__file__).parent
WRITES = {"write_text", "write_bytes", "save_file", "save_model", "tofile", "to_csv", "imsave"}


def writes_of(file: Path) -> Iterator[str]:
    """Calls of a module that write a file by themselves."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [str(a.value) for a in given if isinstance(a, ast.Constant)]
            modes = [text for text in texts if re.fullmatch(r"[rwaxbt+]{1,3}", text)]
            if name in WRITES or (name == "open" and any(set("wax+") & set(m) for m in modes)):
                yield f"{file.relative_to(PACKAGE)}, line {node.lineno}: {name}"


def test_every_file_is_written_by_write_atomically() -> None:
    """Row 33: whatever writes another way leaves half a file, or one of 0 bytes."""
    found = [line for file in sorted(PACKAGE.rglob("*.py")) for line in writes_of(file)]
    assert [line.partition(",")[0] for line in found] == ["files.py"], found
