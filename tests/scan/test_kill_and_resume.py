"""A scan that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from subprocess import Popen

import pytest
from launching import TESTS, WarmProcess, start_python

from cgd_wrap.files import read_json
from cgd_wrap.scan.store import UnitStore

SCRIPT = str(TESTS / "guarded_run.py")
UNITS = 4
SIZE = 256  # rows of a unit: two batches
ROWS = (UNITS - 1) * SIZE + 60
SLOWLY = ("--seconds", "0.2")


def start(cache: Path, *options: str, fresh: bool = False) -> Popen[str] | WarmProcess:
    rows = ("--rows", str(ROWS), "--unit", str(SIZE))
    return start_python(SCRIPT, str(cache), *rows, *options, fresh=fresh)


def entered(folder: Path) -> dict[str, int]:
    """Units that are stored, with the time of their last change."""
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.glob("0*"))}


def stop_at(process: Popen[str] | WarmProcess, folder: Path, units: int, how: int) -> str:
    """Send a signal in the middle of the unit after these."""
    while len(entered(folder)) < units:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def content(cache: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(cache)): p.read_bytes()
        for p in cache.rglob("*")
        if p.is_file() and not p.name.endswith(".tmp")
    }


def finish(cache: Path, *, fresh: bool = False) -> None:
    process = start(cache, fresh=fresh)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("uninterrupted")
    finish(cache, fresh=True)  # sets have another order there
    return content(cache)


def test_killed_twice_and_resumed(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    process = start(tmp_path, *SLOWLY)
    stop_at(process, tmp_path / "clip", 2, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    clip = entered(tmp_path / "clip")
    assert 2 <= len(clip) < UNITS

    process = start(tmp_path, *SLOWLY)
    stop_at(process, tmp_path / "suspicious", 1, signal.SIGKILL)
    suspicious = entered(tmp_path / "suspicious")
    assert 1 <= len(suspicious) < UNITS

    finish(tmp_path)
    for before, folder in ((clip, "clip"), (suspicious, "suspicious")):
        after = entered(tmp_path / folder)
        assert len(after) == UNITS
        assert {name: after[name] for name in before} == before  # nothing was done twice
    assert content(tmp_path) == uninterrupted


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_whole_units_only(
    tmp_path: Path, how: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgd_wrap.scan.store.UNIT_SIZE", SIZE)
    process = start(tmp_path, *SLOWLY)
    errors = stop_at(process, tmp_path / "clip", 1, how)
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert not list(tmp_path.rglob(".*"))
    manifest = read_json(tmp_path / "clip" / "manifest.json")
    assert manifest is not None
    fields = {k: v for k, v in manifest["fingerprint"].items() if k not in ("rows", "unit_size")}
    store = UnitStore.open(tmp_path / "clip", ROWS, fields)
    done = [int(name[:5]) for name in entered(tmp_path / "clip")]
    assert 1 <= len(done) < UNITS
    assert store.missing(done) == []
