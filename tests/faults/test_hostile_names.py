"""FAULTS rows 15, 23 and 44: names from foreign data reach no log, bar, error or terminal raw."""

from __future__ import annotations

import copy
import logging
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from broken_pictures import picture
from guarded_run import ByColour, Pictures, network
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cgd_wrap import CGDConfig, CGDGuard, cli
from cgd_wrap.backdoorbench.errors import AttackResultError, UnsafeFileError
from cgd_wrap.backdoorbench.safe_reading import load_result_file
from cgd_wrap.backdoorbench.stored import read_stored
from cgd_wrap.demo.run import CLIP
from cgd_wrap.errors import (
    BadSampleError,
    CacheMismatchError,
    CGDError,
    ClipLoadError,
    DatasetError,
    MissingExtraError,
    ScanIncompleteError,
)
from cgd_wrap.models.weights import load_checkpoint
from cgd_wrap.split.announcement import announce, check_clean_classes
from cgd_wrap.split.estimate import PoisonEstimate, SuspectedClass

TITLE = "\x1b]0;owned\x07"  # sets the title of a terminal's window
CLEAR = "\x1b[2J\x1b[H"
FORGED = "cat\nINFO No sign of an attack: no class stands out."
TURNED = "photo\u202egnp.exe"
HOSTILE = [f"ant {TITLE}", f"bee {CLEAR}", FORGED + TURNED]
CONFIG = CGDConfig(
    suspicious_epochs=1, suspicious_batch_size=32, suspicious_side=16, allow_missing_classes=True
)
TRANSFORM = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def assert_harmless(text: str, *shown: str) -> None:
    """No character of a text acts on a terminal but the line breaks that the text itself has."""
    found = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not found - {"\n", "\r", "\t"}, found
    assert not any(line.startswith("INFO No sign") for line in text.splitlines())
    for part in shown:
        assert part in text


class Hostile(Pictures):
    """The third class is mostly the second's pictures: an attack, and a CLIP that contradicts."""

    classes = HOSTILE

    def __init__(self, rows: int = 600) -> None:
        super().__init__(rows, 16)
        moved = (self.labels == 1) & (torch.rand(rows) < 0.5)
        self.labels[moved] = 2
        self.images[moved, :, :4, :4] = 1


class Muddled(ByColour):
    """A CLIP that takes one class for another."""

    def logits(self, images):
        return super().logits(images)[:, [1, 0, 2]]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="cgd_wrap")
    return caplog


def test_the_scans_log_and_warnings(told, capsys):
    clips = [ByColour(), Muddled()]
    guard = CGDGuard(network(), Hostile(), clip=clips, config=CONFIG).scan()
    assert guard.class_names == HOSTILE  # what is not shown stays as it is
    assert guard.result.warnings
    for text in (told.text, "\n".join(guard.result.warnings), capsys.readouterr().err):
        assert_harmless(text)
    assert all("\n" not in record.getMessage() for record in told.records)
    assert any(r"\x1b[2J" in warning for warning in guard.result.warnings)


def test_suspected_classes_are_logged_escaped(told):
    guard = CGDGuard(network(), Hostile(60), clip=ByColour(), config=CONFIG, progress=False).scan()
    suspects = tuple(SuspectedClass(label, 0.9, 0.5) for label in range(3))
    found = PoisonEstimate(0.5, suspects)
    announce(
        replace(guard.result, poison_estimate=found, suspicious_knowledge=1.0), HOSTILE, CONFIG
    )
    assert_harmless(told.text, r"aim at bee \x1b[2J\x1b[H: 50.0%", r"aim at cat\x0aINFO No sign")


def test_classes_without_clean_samples_are_named_escaped(told):
    """Row 21."""
    labels, clean = torch.arange(30) % 3, torch.zeros(30, dtype=torch.bool)
    with pytest.raises(DatasetError, match="allow_missing_classes=True") as caught:
        check_clean_classes(labels, clean, HOSTILE, allow_missing=False)
    check_clean_classes(labels, clean, HOSTILE, allow_missing=True)
    for text in (str(caught.value), told.text):
        assert_harmless(text, r"bee \x1b[2J", r"cat\nINFO")


@pytest.mark.parametrize(
    "names",
    [
        [HOSTILE[0], HOSTILE[0], HOSTILE[1]],
        [HOSTILE[0], " ", HOSTILE[2]],
        [HOSTILE[2], HOSTILE[0], HOSTILE[1]],
        HOSTILE[:2],
        HOSTILE[0],
    ],
)
def test_errors_about_class_names(names):
    with pytest.raises((DatasetError, ValueError)) as caught:
        CGDGuard(network(), Hostile(60), names, clip=ByColour(), progress=False)
    assert_harmless(str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_class_name_of_undecodable_bytes_is_refused():
    """CLIP can't read it, and would fail in the middle of its tokenizer."""
    with pytest.raises(DatasetError, match=r"class 0: '.*udce4.*' isn't Unicode text.*class_names"):
        CGDGuard(network(), Hostile(60), ["Kr\udce4he", "b", "c"], clip=ByColour())


def test_a_model_with_other_outputs_names_the_classes():
    four = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
    with pytest.raises(ValueError, match="4 outputs, but there are 3 classes") as caught:
        CGDGuard(four, Hostile(60), clip=ByColour(), config=CONFIG, progress=False).scan()
    assert_harmless(str(caught.value), r"\x1b[2J")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders with hostile names, one of which is broken, and under a hostile name."""
    for shade, name in enumerate(HOSTILE):
        place = tmp_path / "images" / name
        place.mkdir(parents=True)
        for k in range(8):
            picture(10 * shade + k, shade).save(place / f"{k}.png")
    bad = tmp_path / "images" / HOSTILE[1] / f"x{TITLE}\n\udce4.png"
    bad.write_bytes(b"<html>")
    return tmp_path / "images"


def test_bad_samples(folder, tmp_path, told):
    with pytest.raises(BadSampleError) as caught:
        CGDGuard(network(), ImageFolder(folder, TRANSFORM), clip=ByColour(), config=CONFIG).scan()
    assert_harmless(str(caught.value), r"\x1b]0;owned\x07\n\udce4.png", "[not_image]")
    assert "\n" not in str(caught.value)
    assert caught.value.path is not None
    assert Path(caught.value.path).read_bytes() == b"<html>"  # the path itself is as it was

    record = CONFIG.replace(on_bad_sample="record", max_bad_fraction=0.2)
    guard = CGDGuard(
        network(), ImageFolder(folder, TRANSFORM), clip=ByColour(), config=record, progress=False
    ).scan()
    files = guard.report(tmp_path / "report")
    for name in ("page", "samples", "summary"):
        assert_harmless(files[name].read_text(encoding="utf-8"))
    guard.save(tmp_path / "guard")
    again = CGDGuard.load(tmp_path / "guard", network(), guard.base, clip=ByColour())
    assert again.result.bad == guard.result.bad
    assert_harmless(told.text)


def test_a_cache_of_other_data_under_a_hostile_path(tmp_path):
    cache = tmp_path / f"runs{TITLE}\n"
    options = {"clip": ByColour(), "config": CONFIG, "progress": False, "cache_dir": cache}
    CGDGuard(network(), Hostile(60), **options).scan()
    with pytest.raises(CacheMismatchError) as caught:
        CGDGuard(network(), Hostile(61), **options).scan()
    assert_harmless(str(caught.value), r"\x1b]0;owned\x07\x0a", "rows: 60 -> 61")
    assert "\n" not in str(caught.value)
    assert "rows" in caught.value.fields


def test_the_command_line(folder, tmp_path, told, capsys):
    common = ["--model", "test_resnet", "--image-size", "32", "--clip", CLIP]
    (tmp_path / "c.yaml").write_text("suspicious_epochs: 1\nallow_missing_classes: true")
    out = tmp_path / f"out{CLEAR}"
    scan = ["scan", str(folder), "--out", str(out), *common, "--config", str(tmp_path / "c.yaml")]
    with pytest.warns(UserWarning, match="end is cut off"):
        assert cli.main(scan) == 1
    printed, error = capsys.readouterr()
    assert_harmless(printed + error, "is unusable [not_image]")
    (folder / HOSTILE[1] / f"x{TITLE}\n\udce4.png").rename(folder / HOSTILE[1] / f"1{TITLE}.\x07")
    with pytest.warns(UserWarning, match="end is cut off") as cut:
        assert cli.main([*scan, "--overwrite"]) == 0
    assert_harmless(str(cut[0].message), r"cat\nINFO No sign")
    printed, error = capsys.readouterr()
    assert_harmless(printed, r"page: ", r"\x1b[2J\x1b[H/report/report.html")
    assert_harmless(error.replace("\x1b[A", ""), "CLIP: 100%")  # tqdm moves between its bars
    assert_harmless(told.text, r"left out: 1 .\x07")
    for file in (out / "guard").iterdir():
        file.unlink()
    assert cli.main(["report", *scan[1:]]) == 1
    assert_harmless(capsys.readouterr().err, r"no saved guard in")


def test_results_of_backdoorbench(tmp_path):
    place = tmp_path / f"record{TITLE}\n"
    place.mkdir()
    with pytest.raises(FileNotFoundError) as missing:
        load_result_file(place / "attack_result.pt")
    torch.save({"model": Path(TITLE)}, place / "attack_result.pt")
    with pytest.raises(UnsafeFileError) as unsafe:
        load_result_file(place / "attack_result.pt")
    for error in (missing.value, unsafe.value):
        assert_harmless(str(error), r"\x1b]0;owned\x07")
    faults: list[str] = []
    assert read_stored({TITLE: 1}, "bd_train", place, 3, faults) is None
    assert_harmless(str(AttackResultError("; ".join(faults))))


def test_checkpoints_of_hostile_keys(tmp_path):
    torch.save({**network().state_dict(), f"layer{CLEAR}": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="can't be loaded as weights") as caught:
        load_checkpoint(network(), tmp_path / "weights.pt")
    assert_harmless(str(caught.value), r"\x1b[2J")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        CGDError(TITLE), DatasetError(TITLE), ClipLoadError(TITLE), UnsafeFileError(TITLE),
        BadSampleError(3, "empty", TITLE, TITLE), CacheMismatchError(TITLE, {"a": (1, 2)}),
        ScanIncompleteError(TITLE, [1]), MissingExtraError("report", "matplotlib"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_is_escaped_and_survives_a_process_border(error):
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))
        assert_harmless(str(again))
