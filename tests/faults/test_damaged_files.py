"""Rows 34, 35, 43, 46 and 48 of FAULTS.md: damaged, swapped, copied and alien stored files."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_passes import PICTURES, load_clips_once
from tiny_data import NAMES, Tied, quick_config, tiny_net
from torch import Tensor

from cgd_wrap import CacheMismatchError, CGDGuard, StoredFileError
from cgd_wrap.demo.run import CLIP
from cgd_wrap.files import content_hash
from cgd_wrap.models.weights import hash_tensors
from cgd_wrap.scan.stored_logits import members_of
from cgd_wrap.sealed import read_sealed, read_sealed_json, write_sealed
from cgd_wrap.split.saving import read_saved


class Pictures:
    """24 pictures, of which the fourth can't be read."""

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 3:
            raise OSError("image file is truncated")
        return PICTURES[index], index % 3


def guard_of(cache: Path) -> CGDGuard:
    config = quick_config(
        suspicious_epochs=1, suspicious_runs=2, on_bad_sample="record", max_bad_fraction=0.1,
        allow_missing_classes=True, holdout_fraction=0.0,
    )  # fmt: skip
    return CGDGuard(
        tiny_net(), Pictures(), NAMES, clip=[CLIP, CLIP], config=config, cache_dir=cache,
        image_key=0, label_key=1, progress=False,
    )  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass
class Stored:
    """A finished scan.

    Attributes:
        guard: the guard that scanned.
        cache: its folder, which no test changes.
        files: content of the cache by path.
    """

    guard: CGDGuard
    cache: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    cache = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        load_clips_once(patch)
        guard = guard_of(cache).scan()
        yield Stored(guard, cache, content(cache))


@pytest.fixture
def cache(stored: Stored, tmp_path: Path) -> Path:
    """A copy of the finished scan, to damage."""
    return Path(shutil.copytree(stored.cache, tmp_path / "cache"))


def found_by(guard: CGDGuard) -> dict[str, Tensor]:
    return {**vars(guard.entropy_map), **vars(guard.split), "teacher": guard.result.teacher}


def assert_redone(cache: Path, stored: Stored, **options: bool) -> None:
    """A scan on a damaged cache finds the same, and puts each file right."""
    guard = guard_of(cache).scan(**options)
    for name, column in found_by(stored.guard).items():
        torch.testing.assert_close(found_by(guard)[name], column, rtol=0, atol=0, equal_nan=True)
    assert guard.result.bad == stored.guard.result.bad
    assert content(cache) == stored.files


FILES = (
    *(f"{name}/{file}" for name in ("clip", "clip-2", "suspicious")
      for file in ("manifest.json", "00000.safetensors")),
    "clip/text.safetensors", "clip-2/text.safetensors",
    "suspicious/run-0.safetensors", "suspicious/run-1.safetensors", "suspicious/training.json",
)  # fmt: skip


def flipped(payload: bytes, at: int, bit: int = 2) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda payload: flipped(payload, len(payload) // 2),
    "last byte": lambda payload: flipped(payload, len(payload) - 3),
    "truncated": lambda payload: payload[:-5],
    "empty": lambda payload: b"",
    "alien": lambda payload: b"<html>Not found</html>",
    "huge header": lambda payload: b"\xff" * 8 + payload[8:],
    "deep": lambda payload: b"[" * 100_000,
}


def test_these_are_all_files_of_a_scan(stored: Stored) -> None:
    assert set(stored.files) == set(FILES)
    assert stored.guard.result.bad[3][0] == "truncated"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_done_again(name: str, cache: Path, stored: Stored) -> None:
    """Rows 34, 35 and 48: never used, never a foreign error, and the scan's result is the same."""
    (cache / name).write_bytes(DAMAGES["flip"](stored.files[name]))
    assert_redone(cache, stored)


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_files_damaged_at_once_are_done_again(damage: str, cache: Path, stored: Stored) -> None:
    """Rows 34 and 35."""
    for name, payload in stored.files.items():
        (cache / name).write_bytes(DAMAGES[damage](payload))
    assert_redone(cache, stored)


SWAPS = [
    ("clip/text.safetensors", "clip-2/text.safetensors"),
    ("clip/00000.safetensors", "clip-2/00000.safetensors"),
    ("clip/manifest.json", "clip-2/manifest.json"),
    ("suspicious/run-0.safetensors", "suspicious/run-1.safetensors"),
    ("suspicious/00000.safetensors", "clip/00000.safetensors"),
]


@pytest.mark.parametrize("pair", SWAPS, ids=lambda pair: " and ".join(pair))
def test_files_that_changed_places_are_done_again(
    pair: tuple[str, str], cache: Path, stored: Stored
) -> None:
    """Row 48: a file knows where it belongs."""
    one, two = pair
    (cache / one).write_bytes(stored.files[two])
    (cache / two).write_bytes(stored.files[one])
    assert_redone(cache, stored)


def test_a_text_side_of_another_clip_is_done_again(cache: Path, stored: Stored) -> None:
    """Row 48: copied from a cache that was made when other weights had the same name."""
    file, place = cache / "clip" / "text.safetensors", {"kind": "text", "pass": "clip"}
    found = read_sealed(file, place)
    assert found is not None
    tensors, notes = found
    other = {**notes, "image_side": {**notes["image_side"], "weights": "blake2b:0"}}
    assert set(other["image_side"]) == set(notes["image_side"])
    write_sealed(file, {name: -tensor for name, tensor in tensors.items()}, place, other)
    assert_redone(cache, stored)


def test_weights_that_are_tied_are_read_again(tmp_path: Path, stored: Stored) -> None:
    def scanned() -> Tensor:
        guard = guard_of(tmp_path)
        guard.model = Tied()
        return guard.scan().entropy_map.suspicious_rank.nan_to_num()

    first = scanned()
    (tmp_path / "suspicious" / "00000.safetensors").unlink()
    before = content(tmp_path)
    assert torch.equal(scanned(), first)
    assert content(tmp_path).items() > before.items()


def test_overwriting_does_not_make_damage_permanent(cache: Path, stored: Stored) -> None:
    """Row 48: damaged suspicious weights under scan(overwrite=True)."""
    name = "suspicious/run-1.safetensors"
    (cache / name).write_bytes(flipped(stored.files[name], len(stored.files[name]) - 9))
    assert_redone(cache, stored, overwrite=True)


def test_a_run_that_comes_out_otherwise_has_its_pass_done_again(
    cache: Path, stored: Stored
) -> None:
    """Row 48: as where a GPU, or another number of processes, gives other bits."""
    file = cache / "suspicious" / "run-0.safetensors"
    training = hash_of_training(stored)
    place = {"kind": "suspicious weights", "training": training, "run": 0}
    found = read_sealed(file, place)
    assert found is not None
    others = {name: t + 1 if t.is_floating_point() else t for name, t in found[0].items()}
    write_sealed(file, others, place)
    before, after = stored.guard.entropy_map, guard_of(cache).scan().entropy_map
    assert torch.equal(before.clip_rank.nan_to_num(), after.clip_rank.nan_to_num())
    assert not torch.equal(before.suspicious_rank.nan_to_num(), after.suspicious_rank.nan_to_num())


def hash_of_training(stored: Stored) -> str:
    training = json.loads(stored.files["suspicious/training.json"])
    del training["seal"]
    return content_hash(json.dumps(training, sort_keys=True).encode())


# --- flips ---------------------------------------------------------------------------------------

FLIPS = 440  # a file; one in twenty is a cut


def readers(stored: Stored, cache: Path, saved: Path) -> dict[Path, Callable[[], Any]]:
    """How the library reads each stored file; what doesn't open gives None."""
    clip, suspicious = stored.guard.logits
    passes = {one.store.folder.name: one.store for one in (*members_of(clip), suspicious)}
    found: dict[Path, Callable[[], Any]] = {}
    for name, store in passes.items():
        folder = cache / name
        here = type(store)(folder, store.rows, store.made_for)
        found[folder / "00000.safetensors"] = lambda here=here: here.read(0)
        place = {"kind": "manifest", "pass": name}
        found[folder / "manifest.json"] = lambda f=folder / "manifest.json", p=place: (
            read_sealed_json(f, p)
        )
        if name != "suspicious":
            text = {"kind": "text", "pass": name}
            found[folder / "text.safetensors"] = lambda f=folder / "text.safetensors", p=text: (
                read_sealed(f, p)
            )
    training = hash_of_training(stored)
    for run in range(2):
        place = {"kind": "suspicious weights", "training": training, "run": run}
        file = cache / "suspicious" / f"run-{run}.safetensors"
        found[file] = lambda f=file, p=place: read_sealed(f, p)
    place, file = {"kind": "suspicious training"}, cache / "suspicious" / "training.json"
    found[file] = lambda f=file, p=place: read_sealed_json(f, p)
    found[saved / "guard.safetensors"] = lambda: loaded(saved)
    return found


def loaded(folder: Path) -> Any:
    try:
        return read_saved(folder)
    except StoredFileError:
        return None


def described(value: Any) -> str:
    """A value with its tensors as text."""
    if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
        return hash_tensors(value)
    if isinstance(value, tuple):
        return repr([described(part) for part in value])
    return json.dumps(value, sort_keys=True)


def test_5000_flips_are_noticed_or_change_nothing(
    cache: Path, stored: Stored, tmp_path: Path
) -> None:
    """Rows 34 and 48: whatever opens holds what was stored."""
    stored.guard.save(tmp_path / "saved")
    draw, noticed, number = random.Random(0), 0, 0
    reading = readers(stored, cache, tmp_path / "saved")
    assert len(reading) == len(FILES) + 1
    for file, read in reading.items():
        payload = file.read_bytes()
        whole = read()
        assert whole is not None, file
        expected = described(whole)
        for number in range(FLIPS):
            if number < FLIPS // 20:
                damaged = payload[: draw.randrange(len(payload))]
            else:
                damaged = flipped(payload, draw.randrange(len(payload)), draw.randrange(8))
            file.write_bytes(damaged)
            found = read()
            assert found is None or described(found) == expected, (file, number)
            noticed += found is None
        file.write_bytes(payload)
    assert noticed > 0.97 * FLIPS * len(reading)  # the rest: spaces and escapes that mean the same


def scanned_or_refused(cache: Path) -> CGDGuard | str:
    try:
        return guard_of(cache).scan()
    except CacheMismatchError as error:
        return str(error)


@pytest.mark.slow
def test_100_flips_in_whole_scans(cache: Path, stored: Stored) -> None:
    """Rows 34 and 48, from end to end."""
    draw = random.Random(1)
    for _ in range(100):
        name = draw.choice(FILES)
        payload = flipped(
            stored.files[name], draw.randrange(len(stored.files[name])), draw.randrange(8)
        )
        (cache / name).write_bytes(payload)
        guard = scanned_or_refused(cache)
        if isinstance(guard, str):  # the version's number was hit
            assert name.endswith("manifest.json")
            assert "or manifest.json is damaged" in guard
            (cache / name).write_bytes(stored.files[name])
            continue
        for column, value in found_by(stored.guard).items():
            torch.testing.assert_close(
                found_by(guard)[column], value, rtol=0, atol=0, equal_nan=True
            )
        left = content(cache)
        if left[name] == payload:  # the flip had no effect
            left[name] = stored.files[name]
            (cache / name).write_bytes(stored.files[name])
        assert left == stored.files


# --- saved guards --------------------------------------------------------------------------------


def load(folder: Path, guard: CGDGuard) -> CGDGuard:
    return CGDGuard.load(
        folder, guard.model, guard.base, class_names=NAMES, clip=guard.clip, image_key=0,
        label_key=1,
    )  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_saved_guard_is_refused(damage: str, stored: Stored, tmp_path: Path) -> None:
    """Row 48: what can't be made again is refused, with what to do."""
    stored.guard.save(tmp_path)
    file = tmp_path / "guard.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(StoredFileError, match=r"guard\.safetensors is damaged.* scan again"):
        load(tmp_path, stored.guard)
    stored.guard.save(tmp_path)
    assert load(tmp_path, stored.guard).config == stored.guard.config


def test_a_unit_is_no_saved_guard(stored: Stored, tmp_path: Path) -> None:
    """Row 48."""
    unit = stored.cache / "clip" / "00000.safetensors"
    shutil.copy(unit, tmp_path / "guard.safetensors")
    with pytest.raises(StoredFileError, match="isn't a saved guard"):
        load(tmp_path, stored.guard)


def test_saved_guards_of_other_versions_are_refused_by_version(
    stored: Stored, tmp_path: Path
) -> None:
    """Row 43."""
    save_file({"map.clip_nll": torch.zeros(24)}, tmp_path / "guard.safetensors")
    (tmp_path / "guard.json").write_text('{"format": 1}')
    with pytest.raises(CacheMismatchError, match=r"older version .*format 1.* scan again"):
        load(tmp_path, stored.guard)
    stored.guard.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["guard.safetensors"]
    found = read_sealed(tmp_path / "guard.safetensors", {"kind": "guard"})
    assert found is not None
    newer = {**found[1], "format": 99}
    write_sealed(tmp_path / "guard.safetensors", found[0], {"kind": "guard"}, newer)
    with pytest.raises(CacheMismatchError, match="newer version") as caught:
        load(tmp_path, stored.guard)
    assert caught.value.fields["format"][0] == 99


# --- caches that can't be used -------------------------------------------------------------------


def test_an_old_cache_is_refused_by_version_before_anything_is_computed(
    cache: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 43: also where only a later pass is old; overwrite=True replaces it."""
    manifest = json.loads(stored.files["suspicious/manifest.json"])
    del manifest["seal"]
    (cache / "suspicious" / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    (cache / "clip" / "00000.safetensors").unlink()
    before = content(cache)
    with pytest.raises(CacheMismatchError, match=r"suspicious was written by an older version"):
        guard_of(cache).scan()
    assert content(cache) == before
    assert_redone(cache, stored, overwrite=True)


@pytest.mark.parametrize("name", ["cache", "cache/clip", "cache/suspicious"])
def test_a_file_in_place_of_a_folder_is_named(name: str, tmp_path: Path, stored: Stored) -> None:
    """Row 35."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a note")
    with pytest.raises(StoredFileError, match=f"{name} is a file, but a folder is needed"):
        guard_of(tmp_path / "cache").scan()
    assert content(tmp_path) == {name: b"a note"}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize(
    "name", ["clip/manifest.json", "clip-2/text.safetensors", "suspicious/run-1.safetensors"]
)
def test_what_is_no_file_in_place_of_a_file_is_named(
    name: str, make: Callable[[Path], None], cache: Path
) -> None:
    """Row 35: it can't be replaced, and reading a pipe would never end."""
    (cache / name).unlink()
    make(cache / name)
    with pytest.raises(StoredFileError, match=f"{name} is in the way, where a file is needed"):
        guard_of(cache).scan()


@pytest.mark.parametrize("name", ["clip", "clip-2", "suspicious"])
def test_nothing_is_written_through_a_link_out_of_the_cache(
    name: str, tmp_path: Path, stored: Stored
) -> None:
    """Row 48: the folder of a pass leads elsewhere; it is said before anything is written."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoredFileError, match=f"{name} is a link to .*elsewhere, out of"):
        guard_of(tmp_path / "cache").scan()
    assert content(tmp_path) == {}


def test_the_cache_may_be_a_link_itself(tmp_path: Path, stored: Stored) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "large disk")
    assert_redone(tmp_path / "cache", stored)


def test_a_link_in_place_of_a_file_is_read_and_never_written_through(
    cache: Path, stored: Stored, tmp_path: Path
) -> None:
    """Row 48: tools such as git-annex keep files elsewhere, with links in their places."""
    (tmp_path / "annex").mkdir()
    for number, name in enumerate(FILES):
        (cache / name).rename(tmp_path / "annex" / str(number))
        (cache / name).symlink_to(tmp_path / "annex" / str(number))
    assert_redone(cache, stored)
    assert all((cache / name).is_symlink() for name in FILES)
    damaged = b"somebody else's"
    for number in range(len(FILES)):
        (tmp_path / "annex" / str(number)).write_bytes(damaged)
    assert_redone(cache, stored)
    assert set(content(tmp_path / "annex").values()) == {damaged}


def test_a_finished_cache_is_only_read(cache: Path, stored: Stored) -> None:
    """Row 46: CLIP by name and a trained suspicious model, from a folder without permissions."""
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    for path in cache.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    cache.chmod(0o555)
    assert_redone(cache, stored)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == times
