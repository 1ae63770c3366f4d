"""Units on disk: whole or not there, and never of something else."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filled_store import PRINT, ROWS, filled, values

from cgd_wrap.errors import CacheMismatchError, ScanIncompleteError
from cgd_wrap.files import FORMAT
from cgd_wrap.scan.store import UNIT_SIZE, UnitStore


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_a_unit_comes_back_as_it_was(tmp_path: Path) -> None:
    store = UnitStore.open(tmp_path / "new" / "folder", ROWS, PRINT)
    bad = {1030: ["truncated", "OSError: é\n", "a/b.jpg"], 1025: ["empty", "none", None]}
    store.write(1, values(store, 1), bad)
    assert (found := store.read(1)) is not None
    assert torch.equal(found[0]["logits"], values(store, 1)["logits"])
    assert found[1] == bad
    assert store.missing(range(len(store))) == [0, 2]
    assert not store.is_complete()


def test_units_cover_all_rows_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert [i for rows, *_ in store.units() for i in rows] == list(range(ROWS))
    for world in (1, 2, 3, 7):
        owned = [unit for rank in range(world) for unit in store.owned_by(rank, world)]
        assert sorted(owned) == [0, 1, 2]


def test_a_mismatch_names_the_field_and_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    before = content(tmp_path)
    with pytest.raises(CacheMismatchError, match=r"model: .*'m'.* -> .*'other'") as caught:
        UnitStore.open(tmp_path, ROWS, {**PRINT, "model": {"name": "other", "layers": [1, 2]}})
    assert set(caught.value.fields) == {"model"}
    assert "overwrite=True" in str(caught.value)
    with pytest.raises(CacheMismatchError) as caught:
        UnitStore.open(tmp_path, ROWS + 1, {"dataset": "d1", "extra": 1})
    assert set(caught.value.fields) == {"model", "extra", "rows"}
    assert content(tmp_path) == before


def test_overwrite_leaves_no_old_unit_valid(tmp_path: Path) -> None:
    filled(tmp_path)
    other = UnitStore.open(tmp_path, ROWS, {"dataset": "d2"}, overwrite=True)
    assert other.missing(range(3)) == [0, 1, 2]
    other.write(1, values(other, 1), {})
    # A slower process of the same run must not undo that.
    again = UnitStore.open(tmp_path, ROWS, {"dataset": "d2"}, overwrite=True)
    assert again.missing(range(3)) == [0, 2]


def test_overwrite_keeps_what_fits(tmp_path: Path) -> None:
    filled(tmp_path)
    before = content(tmp_path)
    assert UnitStore.open(tmp_path, ROWS, PRINT, overwrite=True).is_complete()
    assert content(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_newer_format_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    filled(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    before = content(tmp_path)
    with pytest.raises(CacheMismatchError, match=r"newer version .*format 99.*left as it is"):
        UnitStore.open(tmp_path, ROWS, PRINT, overwrite=overwrite)
    assert content(tmp_path) == before


def test_an_older_format_is_refused_by_version_until_overwritten(tmp_path: Path) -> None:
    manifest = {"format": 1, "fingerprint": {**PRINT, "rows": ROWS, "unit_size": UNIT_SIZE}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    (tmp_path / "00000.safetensors").write_bytes(b"a unit without a seal")
    before = content(tmp_path)
    with pytest.raises(CacheMismatchError, match=r"older version .*overwrite=True") as caught:
        UnitStore.open(tmp_path, ROWS, PRINT)
    assert caught.value.fields == {"format": (1, FORMAT)}
    assert content(tmp_path) == before
    assert UnitStore.open(tmp_path, ROWS, PRINT, overwrite=True).missing(range(3)) == [0, 1, 2]
    assert filled(tmp_path).is_complete()


MANIFESTS = [b"", b"\xff\x00\xfe", b"[1]", b"{}", b'{"format": 2', b"[" * 100_000]


@pytest.mark.parametrize("manifest", [*MANIFESTS, b'{"format": true}'])
def test_a_damaged_manifest_is_written_anew_and_the_units_stay(
    tmp_path: Path, manifest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    before = content(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest)
    with caplog.at_level(logging.WARNING):
        assert UnitStore.open(tmp_path, ROWS, PRINT).is_complete()
    assert f"The manifest of {tmp_path} is damaged or old" in caplog.text
    whole = before.pop("manifest.json")[0]
    after = content(tmp_path)
    assert after.pop("manifest.json")[0] == whole
    assert after == before


def test_a_damaged_manifest_lends_no_unit_to_other_data(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{")
    other = UnitStore.open(tmp_path, ROWS, {**PRINT, "dataset": "d2"})
    assert other.missing(range(3)) == [0, 1, 2]


def test_results_of_other_derived_values_are_made_again_without_asking(tmp_path: Path) -> None:
    def opened(dataset: str, weights: str) -> UnitStore:
        fields = {"dataset": dataset, "weights": weights}
        return UnitStore.open(tmp_path, ROWS, fields, derived=["weights"])

    store = opened("d1", "a")
    store.write(0, values(store, 0), {})
    assert opened("d1", "a").missing([0]) == []
    assert opened("d1", "b").missing([0]) == [0]
    with pytest.raises(CacheMismatchError) as caught:
        opened("d2", "c")
    assert set(caught.value.fields) == {"dataset"}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "bit flip": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "alien": lambda path: path.write_bytes(b"PK\x03\x04 not a tensor in sight"),
    "gone": lambda path: path.unlink(),
    "another unit's": lambda path: path.write_bytes(
        path.with_name("00001.safetensors").read_bytes()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_payload_is_done_again(tmp_path: Path, damage, caplog) -> None:
    store = filled(tmp_path)
    whole = (tmp_path / "00000.safetensors").read_bytes()
    damage(tmp_path / "00000.safetensors")
    with caplog.at_level(logging.WARNING):
        assert store.missing(range(3)) == [0]
    assert ("units [0] are damaged" in caplog.text) == (tmp_path / "00000.safetensors").exists()
    assert not store.is_complete()
    with pytest.raises(ScanIncompleteError, match="unit 0 is missing or damaged"):
        list(store.units())
    store.write(0, values(store, 0), {})
    assert store.is_complete()
    assert (tmp_path / "00000.safetensors").read_bytes() == whole


def test_a_unit_belongs_to_its_number_its_pass_and_its_data(tmp_path: Path) -> None:
    here = filled(tmp_path / "a" / "clip")
    elsewhere = {
        "number": here.folder / "00001.safetensors",
        "pass": filled(tmp_path / "a" / "clip-2").folder / "00000.safetensors",
    }
    other = UnitStore.open(tmp_path / "b" / "clip", ROWS, {**PRINT, "dataset": "d2"})
    other.write(0, values(other, 0), {})
    elsewhere["data"] = other.folder / "00000.safetensors"
    whole = (here.folder / "00000.safetensors").read_bytes()
    for what, file in elsewhere.items():
        (here.folder / "00000.safetensors").write_bytes(file.read_bytes())
        assert here.missing(range(3)) == [0], what
    moved = filled(tmp_path / "c" / "clip")  # another cache of the same data
    (here.folder / "00000.safetensors").write_bytes(
        (moved.folder / "00000.safetensors").read_bytes()
    )
    assert here.is_complete()
    assert (here.folder / "00000.safetensors").read_bytes() == whole


def test_a_changed_list_of_bad_samples_is_done_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.write(0, values(store, 0), {7: ["empty", "no bytes", None]})
    payload = (tmp_path / "00000.safetensors").read_bytes()
    assert payload.count(b"no bytes") == 1
    (tmp_path / "00000.safetensors").write_bytes(payload.replace(b"no bytes", b"no trace"))
    assert store.missing(range(3)) == [0]


def test_a_complete_store_is_only_read(tmp_path: Path) -> None:
    filled(tmp_path)
    before = content(tmp_path)
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    touched = tmp_path.stat().st_mtime_ns
    try:
        store = UnitStore.open(tmp_path, ROWS, PRINT)
        assert store.is_complete()
        store.wait(1)
        assert len(list(store.units())) == 3
        assert content(tmp_path) == before
        assert tmp_path.stat().st_mtime_ns == touched
    finally:
        tmp_path.chmod(0o755)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip(f"can't mount a small disk: {done.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    store = UnitStore.open(small_disk, ROWS, PRINT)
    store.write(2, values(store, 2), {})
    before = content(small_disk)
    huge = {"logits": torch.zeros(UNIT_SIZE, 256)}  # 1 MiB
    with pytest.raises(OSError, match=r"no space for .*00000\.safetensors: 104\d+ bytes needed"):
        store.write(0, huge, {})
    assert content(small_disk) == before
    assert UnitStore.open(small_disk, ROWS, PRINT).missing(range(3)) == [0, 1]


def test_waiting_ends_with_the_names_of_what_is_missing(tmp_path: Path) -> None:
    store = UnitStore.open(tmp_path, ROWS, PRINT)
    store.write(1, values(store, 1), {})
    with pytest.raises(ScanIncompleteError, match=r"units \[0, 2\] of 3 are missing") as caught:
        store.wait(0.2)
    assert caught.value.missing == [0, 2]


def test_waiting_goes_on_as_long_as_units_come(tmp_path: Path) -> None:
    store = UnitStore.open(tmp_path, ROWS, PRINT)

    def deliver() -> None:
        for unit in range(3):
            time.sleep(0.4)
            store.write(unit, values(store, unit), {})

    other = threading.Thread(target=deliver)
    other.start()
    store.wait(0.8)
    other.join()
    assert store.is_complete()


def test_waiting_does_not_take_a_damaged_unit(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip_a_bit(tmp_path / "00001.safetensors")
    with pytest.raises(ScanIncompleteError) as caught:
        store.wait(0.2)
    assert caught.value.missing == [1]
