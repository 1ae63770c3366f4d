"""Rows 31, 32, 33 and 49 of FAULTS.md: a kill at every system call that changes a stored file."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launching import TESTS, start_python
from power_cut import PowerCut, power_cut
from safetensors.torch import load_model
from small_passes import KINDS, load_clips_once, scanned
from tiny_data import NAMES, tensors, tiny_net

from cgd_wrap import CGDGuard, files
from cgd_wrap.models.weights import write_weights


@pytest.fixture(scope="module", autouse=True)
def one_clip() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load_clips_once(patch)
        yield


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: the one that was killed runs no more."""
    monkeypatch.setattr(files, "_is_running", lambda process: False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_call_ends_in_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 31, 32 and 49: what goes on after the kill ends as if there had been none."""
    restarted(monkeypatch)
    make, whole = KINDS[kind], tmp_path / "whole"
    with power_cut(whole, None) as calls:
        make(whole)
    expected = content(whole)
    assert len(calls) >= 4 * len(expected)  # each file: open, fsync, replace, fsync its folder
    for number, call in enumerate(calls):
        folder = tmp_path / str(number)
        with pytest.raises(PowerCut), power_cut(folder, number):
            make(folder)
        with power_cut(folder, None) as calls_left:
            make(folder)
        assert content(folder) == expected, call
        assert len(calls_left) <= len(calls) - number + 6, call  # one file is done twice at most


@pytest.mark.parametrize("number", [2, 6, 7, 8, 9])
def test_a_process_that_is_killed_leaves_the_same(number: int, tmp_path: Path) -> None:
    """Rows 31 and 32, by SIGKILL: in the middle of a unit, before and after its renaming."""
    script = str(TESTS / "faults" / "small_passes.py")
    process = start_python(script, "units", str(tmp_path / "killed"), str(number))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    KINDS["units"](tmp_path / "killed")
    KINDS["units"](tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_saved_guard_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 49: tensors, settings and identity are never of two guards."""
    restarted(monkeypatch)
    guard = scanned()
    guard.save(tmp_path)
    old = guard.config
    monkeypatch.setattr(guard, "config", old.replace(epochs=old.epochs + 1))
    epochs = []
    for number in range(100):
        try:
            with power_cut(tmp_path, number):
                guard.save(tmp_path)
        except PowerCut:
            pass
        else:
            break
        loaded = CGDGuard.load(tmp_path, tiny_net(), tensors(), class_names=NAMES)
        assert torch.equal(loaded.split.clean, guard.split.clean)
        epochs.append(loaded.config.epochs)
    assert epochs == sorted(epochs)
    assert set(epochs) == {old.epochs, old.epochs + 1}


def test_repaired_weights_are_the_old_or_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 31, for the file of --weights-out."""
    restarted(monkeypatch)
    path = tmp_path / "weights.safetensors"
    write_weights(tiny_net(seed=1), path)
    old = path.read_bytes()
    with power_cut(tmp_path, None) as calls:
        write_weights(tiny_net(seed=2), tmp_path / "other.safetensors")
    new = (tmp_path / "other.safetensors").read_bytes()
    for number in range(len(calls)):
        path.write_bytes(old)
        with pytest.raises(PowerCut), power_cut(tmp_path, number):
            write_weights(tiny_net(seed=2), path)
        assert path.read_bytes() in (old, new)
        load_model(tiny_net(), path)


def test_a_fit_that_is_killed_at_any_call_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 31 and 61: its checkpoint is that of one epoch or of the next."""
    restarted(monkeypatch)

    def fitted(folder: Path) -> dict[str, torch.Tensor]:
        guard = copy.copy(scanned())
        guard.model = tiny_net()
        assert len(guard.fit(checkpoint_dir=folder / "fit", epochs=3)) == 3
        return guard.model.state_dict()

    with power_cut(tmp_path / "whole", None) as calls:
        expected = fitted(tmp_path / "whole")
    assert len(calls) >= 2 * 4 + 1  # two checkpoints are written, one is deleted
    for number, call in enumerate(calls):
        folder = tmp_path / str(number)
        with pytest.raises(PowerCut), power_cut(folder, number):
            fitted(folder)
        found = fitted(folder)
        assert all(torch.equal(found[name], expected[name]) for name in expected), call
        assert not (folder / "fit").exists(), call
