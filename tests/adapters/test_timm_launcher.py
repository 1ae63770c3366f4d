"""The launcher in integrations/timm: real runs, on one process and on two under torchrun."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from launching import run_python

from cgd_wrap.demo.run import CLIP
from cgd_wrap.demo.shapes import ShapesDataset

# timm's dataset leaves its files open for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LAUNCHER = Path(__file__).parents[2] / "integrations" / "timm"
SETTINGS = (
    "suspicious_network=copy", "suspicious_epochs=1", "suspicious_batch_size=32",
    "allow_missing_classes=True",
)  # fmt: skip
COMMON = (
    "--device", "cpu", "-j", "0", "--input-size", "3", "32", "32", "--epochs", "2",
    "--warmup-epochs", "0", "--lr", "0.05", "--model", "test_vit", "--model-kwargs", "img_size=32",
    "--no-aug",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The demo's pictures as a folder with a training and a validation split."""
    folder = tmp_path_factory.mktemp("shapes")
    for split, size, seed in (("train", 120, 5), ("validation", 40, 6)):
        drawn = ShapesDataset(size, seed)
        for index in range(size):
            image, label = drawn[index]
            path = folder / split / drawn.classes[label] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def arguments_of(shapes, out, cache, *options) -> list[str]:
    guard = ["--cgd-cache", str(cache), "--cgd-clip", CLIP, "--cgd-set", *SETTINGS]
    return [str(shapes), "--output", str(out), *COMMON, *options, *guard]


def launch(*places_and_options, processes=0) -> None:
    script = str(LAUNCHER / "train.py")
    run_python(script, *arguments_of(*places_and_options), processes=processes)


def summary(folder: Path) -> list[dict[str, float]]:
    with (folder / "summary.csv").open() as lines:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def alone(shapes, cache, tmp_path_factory) -> Path:
    """A run of two epochs by one process, with a report."""
    out = tmp_path_factory.mktemp("alone")
    launch(shapes, out, cache, "-b", "32", "--experiment", "run", "--cgd-report")
    return out / "run"


def test_a_launched_run_leaves_what_timm_leaves_and_a_report(alone):
    from timm.models import create_model

    rows = summary(alone)
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        parts = row["train_clean"] + row["train_guidance"] + row["train_unlearning"]
        assert row["train_loss"] == pytest.approx(parts, abs=1e-4)
        assert row["train_guidance"] > 0 > row["train_unlearning"]
        assert 0 <= row["eval_top1"] <= 100
        assert "eval_held_out_top1" in row
    create_model("test_vit", num_classes=10, img_size=32, checkpoint_path=alone / "last.pth.tar")
    assert (alone / "report" / "report.html").is_file()
    assert (alone / "args.yaml").is_file()


def test_two_processes_under_torchrun_train_as_one_does(alone, shapes, cache, tmp_path):
    launch(shapes, tmp_path, cache, "-b", "16", "--experiment", "two", processes=2)
    for found, expected in zip(summary(tmp_path / "two"), summary(alone), strict=True):
        assert found == pytest.approx(expected, abs=1e-3, rel=1e-4)


def test_a_resumed_run_goes_on_as_if_never_stopped(alone, shapes, cache, tmp_path):
    options = ["-b", "32", "--experiment", "rest", "--resume", str(alone / "checkpoint-0.pth.tar")]
    launch(shapes, tmp_path, cache, *options)
    assert summary(tmp_path / "rest") == [pytest.approx(summary(alone)[1], rel=1e-5)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mixup", "0.8"], "--mixup 0.8 blends labels: pass --mixup 0"),
        (["--aug-splits", "3"], "AugMix"),
        (["--val-split", "elsewhere"], "Pass --val-split ''"),
        (["--batch-size", "4096"], "smaller --batch-size"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_what_the_launcher_refuses_it_names(options, words, shapes, cache, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(LAUNCHER))
    import train

    with pytest.raises((ValueError, SystemExit)) as caught:
        train.main(arguments_of(shapes, cache / "out", cache, *options))
    assert words in f"{caught.value} {capsys.readouterr().err}"


def test_defaults_come_from_a_yaml_file(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(LAUNCHER))
    from arguments import parse

    (tmp_path / "a.yaml").write_text("lr: 0.3\nmodel: resnet18\n")
    args = parse(["images", "-c", str(tmp_path / "a.yaml"), "--model", "resnet34"])
    assert (args.lr, args.model, args.data_dir) == (0.3, "resnet34", "images")
    (tmp_path / "a.yaml").write_text("learning_rate: 0.3\n")
    with pytest.raises(SystemExit):
        parse(["images", "-c", str(tmp_path / "a.yaml")])
    assert "unknown options ['learning_rate']" in capsys.readouterr().err
