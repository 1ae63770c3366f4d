"""FAULTS rows 21 to 23 and 41, and whatever else a user can do wrong on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from launching import environment, start_python
from PIL import Image

from cgd_wrap import cli
from cgd_wrap.demo.run import CLIP

# What a user gives may have any type, and must meet our own checks.
pytestmark = pytest.mark.usefixtures("unchecked")

NAMES = ("circle", "square")


def write_images(root: Path, per_class: int = 5, names: tuple[str, ...] = NAMES) -> Path:
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images, and things that are wrong in some way, in one folder."""
    write_images(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken.yaml").write_text("epochs: 3\nseed: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "void.yaml").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    (tmp_path / "laughs.yaml").write_text(
        "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in pairwise("abcde"))
    )
    (tmp_path / "typo.yaml").write_text("epoch: 3")
    (tmp_path / "number.yaml").write_text("3: 4\nx: 1")
    (tmp_path / "value.yaml").write_text("epochs: many")
    (tmp_path / "latin.txt").write_bytes(b"Kr\xe4he\nsquare\n")
    (tmp_path / "three.txt").write_text("circle\nsquare\nstar\n")
    (tmp_path / "twice.txt").write_text("circle\ncircle\n")
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    return tmp_path


def run(root: Path, *arguments: str) -> int:
    """Run a command; ``R/`` stands for the folder."""
    return cli.main([argument.replace("R/", f"{root}/") for argument in arguments])


START = "import sys; from cgd_wrap.cli import main; sys.exit(main())"
COMMON = ("--model", "test_resnet", "--image-size", "32", "--clip", CLIP, "--quiet")
SCAN = ("scan", "R/images", "--out", "R/out", *COMMON)
MISTAKES = {
    "an empty folder": (("scan", "R/empty", "--out", "R/out", *COMMON), "2 or more folders"),
    "no folder": (("scan", "R/nowhere", "--out", "R/out", *COMMON), "nowhere': No such file"),
    "a file for a folder": (("scan", "R/file", "--out", "R/out", *COMMON), "file': Not a dir"),
    "a file in the way": (("scan", "R/images", "--out", "R/file", *COMMON), "file': File exists"),
    "a file above": (("scan", "R/images", "--out", "R/file/x", *COMMON), "file/x': Not a dir"),
    "results in the images": (
        ("scan", "R/images", "--out", "R/images/out", *COMMON), "would be read as a class"),
    "broken YAML": ((*SCAN, "--config", "R/broken.yaml"), "can't be read as YAML: line 2: "),
    "a YAML list": ((*SCAN, "--config", "R/list.yaml"), "expected a mapping of settings, got list"),
    "empty YAML": ((*SCAN, "--config", "R/void.yaml"), "expected a mapping"),
    "binary YAML": ((*SCAN, "--config", "R/binary.yaml"), "can't be read as YAML: Unicode"),
    "deep YAML": ((*SCAN, "--config", "R/deep.yaml"), "deep.yaml': can't be read as YAML: it is"),
    "endless YAML": ((*SCAN, "--config", "R/laughs.yaml"), "aliases (*name) are not read"),
    "an unknown setting": ((*SCAN, "--config", "R/typo.yaml"), "unknown settings ['epoch']"),
    "keys of numbers": ((*SCAN, "--config", "R/number.yaml"), "settings have names, got [3]"),
    "a wrong setting": ((*SCAN, "--config", "R/value.yaml"), "value.yaml': CGDConfig: epochs="),
    "no such YAML": ((*SCAN, "--config", "R/none.yaml"), "none.yaml': No such file"),
    "a folder as YAML": ((*SCAN, "--config", "R/empty"), "empty': Is a directory"),
    "names in Latin-1": ((*SCAN, "--class-names", "R/latin.txt"), "latin.txt' is no text in UTF-8"),
    "too many names": ((*SCAN, "--class-names", "R/three.txt"), "has 3 names, and there are 2 cl"),
    "one name twice": ((*SCAN, "--class-names", "R/twice.txt"), "Pass --class-names with one"),
    "no such names": ((*SCAN, "--class-names", "R/none.txt"), "none.txt': No such file"),
    "an unknown model": ((*SCAN, "--model", "resnet81"), "'resnet81' (similar: resnet"),
    "an unknown tag": ((*SCAN, "--model", "resnet18.mine"), "can't make 'resnet18.mine': "),
    "an image size that a model can't take": (
        (*SCAN, "--model", "test_vit", "--image-size", "33"), "'test_vit' doesn't take images of"),
    "an image size of 0": ((*SCAN, "--image-size", "0"), "--image-size is in pixels"),
    "no checkpoint": ((*SCAN, "--checkpoint", "R/none.pt"), "no checkpoint at"),
    "no weights": ((*SCAN, "--checkpoint", "R/weights.pt"), "weights.pt' can't be loaded as"),
    "an unknown CLIP": ((*SCAN[:-2], "ViT-B-23/openai"), "(similar: ViT-B-32"),
    "no CLIP folder": ((*SCAN[:-2], "local-dir:R/empty"), "no CLIP model in folder"),
    "fewer than no workers": ((*SCAN, "--workers", "-1"), "--workers is 0 or more, got -1"),
    "no results": (("report", "R/images", "--out", "R/out", *COMMON), "no results in"),
    "weights to a folder": (
        ("defend", "R/images", "--out", "R/out", *COMMON, "--weights-out", "R/empty"),
        "empty': Is a directory"),
    "an unknown attack": (
        ("drill", "R/images", "--out", "R/out", *COMMON, "--attack", "badnet"),
        "no attack 'badnet', perhaps 'badnets'"),
    "a rate above 1": (("drill", "R/images", "--out", "R/out", *COMMON, "--rate", "2"), "rate"),
    "no epochs": (("drill", "R/images", "--out", "R/out", *COMMON, "--epochs", "0"), "epochs=0"),
    "a target that isn't there": (
        ("drill", "R/images", "--out", "R/out", *COMMON, "--target", "9"), "target class 9"),
    "test images of other classes": (
        ("drill", "R/images", "--out", "R/out", *COMMON, "--test-images", "R/"), "don't have"),
    "figures to a folder": (
        ("drill", "R/images", "--out", "R/out", *COMMON, "--json", "R/empty"),
        "empty': Is a directory"),
    "half of the arguments": (("defend", "R/images"), "missing: --out, --model, --weights-out"),
    "arguments that exclude each other": (
        ("defend", "--backdoorbench", "R/empty", "--out", "R/x", "--image-size", "8"),
        "takes the place of --out, --image-size: "),
    "no result of BackdoorBench": (("defend", "--backdoorbench", "R/empty"), "no BackdoorBench"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_1(root, mistake, capsys):
    arguments, message = MISTAKES[mistake]
    assert run(root, *arguments) == 1
    printed, error = capsys.readouterr()
    assert message in error
    assert error.startswith("cgd-wrap: ")
    assert error.count("\n") == 1
    assert printed == ""


def test_a_refused_place_of_results_leaves_the_images_as_they_were(root):
    run(root, "scan", "R/images", "--out", "R/images/out", *COMMON)
    assert sorted(path.name for path in (root / "images").iterdir()) == ["circle", "square"]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(root, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert run(root, *SCAN) == 1
    assert "out': Permission denied" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_the_work(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(root, *SCAN) == 1
    assert "pip install 'cgd-wrap[report]'" in capsys.readouterr().err
    assert not (root / "out").exists()


def test_usage_errors_show_no_escape_sequences(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "images", "--out", "x", "--model", "y", "\x1b]0;title\x07"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"\x1b]0;title\x07" in error


def test_errors_name_the_option_that_helps_and_the_option_does(root, capsys):
    """Rows 2 and 19, on the command line."""
    (root / "fast.yaml").write_text(
        "suspicious_epochs: 1\nallow_missing_classes: true\nmax_bad_fraction: 0.2"
    )
    (root / "images" / "circle" / "page.png").write_text("<html>")
    scan = (*SCAN, "--config", "R/fast.yaml")
    assert run(root, *scan) == 1
    error = capsys.readouterr().err
    assert "page.png') is unusable [not_image]" in error
    assert "pass --on-bad-sample record to" in error
    assert run(root, *scan, "--on-bad-sample", "record") == 0
    summary = json.loads((root / "out" / "report" / "summary.json").read_text())
    assert [reason for reason, *_ in summary["bad"].values()] == ["not_image"]

    (root / "images" / "circle" / "page.png").unlink()
    assert run(root, *scan) == 1
    assert "or pass --overwrite to replace it" in capsys.readouterr().err
    assert run(root, *scan, "--overwrite") == 0


def test_classes_in_another_order_than_a_checkpoints_are_told(tmp_path, caplog):
    write_images(tmp_path / "images", 1, ("9", "10"))
    run(tmp_path, *SCAN, "--checkpoint", "R/none.pt")
    assert "Classes are numbered as timm numbers them: 9, 10." in caplog.text


def test_ctrl_c_says_how_to_go_on(root):
    """Row 41: no traceback, exit code 130, and the same command ends what was begun."""
    write_images(root / "more", 250)
    arguments = [a.replace("R/", f"{root}/") for a in ("scan", "R/more", *SCAN[2:])]
    process = start_python("-c", START, *arguments, imports=("cgd_wrap.cli", "timm"))
    cache = root / "out" / "cache"
    limit = time.monotonic() + 200
    while not list(cache.rglob("manifest.json")) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert error.endswith("cgd-wrap: interrupted; what is done is kept: the same command goes on\n")


@pytest.mark.slow
def test_a_scan_ends_though_nobody_reads_its_output(root):
    """As under ``cgd-wrap scan ... | head -0``, in a terminal that shows ASCII alone."""
    os.rename(root / "images" / "circle", root / "images" / "Kr\xe4he")
    arguments = [a.replace("R/", f"{root}/") for a in (*SCAN, "--config", "R/fast.yaml")]
    (root / "fast.yaml").write_text("suspicious_epochs: 1\nallow_missing_classes: true")
    with subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        env=environment(PYTHONIOENCODING="ascii:strict"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert b"Traceback" not in error
    assert b"Exception ignored" not in error
    assert (root / "out" / "report" / "summary.json").is_file()
