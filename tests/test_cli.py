from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cgd_wrap import CGDConfig, cli
from cgd_wrap.demo.run import CLIP
from cgd_wrap.demo.shapes import ShapesDataset

SIZE = 60


@pytest.fixture
def folder(tmp_path, request):
    """60 pictures of the demo, or as many as asked for, in a subfolder per class."""
    shapes = ShapesDataset(getattr(request, "param", SIZE), seed=5)
    for index, (image, label) in enumerate(shapes):
        path = tmp_path / "images" / shapes.classes[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(image)).save(path)
        if index == len(shapes) - 1:
            break
    return tmp_path


def arguments(command, folder, *more):
    config = CGDConfig(
        suspicious_network="copy", suspicious_epochs=1, epochs=1, allow_missing_classes=True
    )
    config.to_yaml(folder / "config.yaml")
    clip = () if "--clip" in more else ("--clip", CLIP)
    return [
        command, str(folder / "images"), "--out", str(folder / "out"), "--model", "test_resnet",
        *clip, "--config", str(folder / "config.yaml"), "--quiet", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("clips", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_scan_then_report_of_a_folder_of_images(folder, capsys, clips):
    more = ["--image-size", "48", *["--clip", CLIP] * clips]
    assert cli.main(arguments("scan", folder, *more)) == 0
    summary = folder / "out" / "report" / "summary.json"
    first = json.loads(summary.read_text())
    summary.unlink()
    assert cli.main(arguments("report", folder, *more)) == 0
    assert json.loads(summary.read_text()) == first
    assert len(first["teachers"]["names"]) == clips
    trained = json.loads((folder / "out" / "cache" / "suspicious" / "training.json").read_text())
    assert trained["input"][-2:] == [48, 48]
    printed = capsys.readouterr().out
    assert "samples:" in printed
    assert printed.count(f"verdict: {first['verdict']['sentence']}") == 2
    assert printed.count("Give it more suspicious_epochs") == 2


@pytest.mark.parametrize("folder", [30], indirect=True)  # of the model's own size, which is large
def test_defend_writes_weights_that_load(folder):
    import timm
    from safetensors.torch import load_model

    weights = folder / "new" / "repaired.safetensors"
    assert cli.main(arguments("defend", folder, "--weights-out", str(weights))) == 0
    missing, unexpected = load_model(timm.create_model("test_resnet", num_classes=10), weights)
    assert not missing
    assert not unexpected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_defend_writes_no_weights_of_a_training_that_diverged(folder, capsys):
    """FAULTS row 53."""
    weights = folder / "repaired.safetensors"
    command = arguments("defend", folder, "--weights-out", str(weights), "--image-size", "48")
    CGDConfig(
        suspicious_epochs=1, suspicious_side=16, epochs=1, allow_missing_classes=True,
        learning_rate=1e30, max_gradient_norm=None, batch_size=16,
    ).to_yaml(folder / "config.yaml")  # fmt: skip
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert "cgd-wrap: the training has diverged: the " in captured.err
    assert "repaired" not in captured.out
    assert not weights.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--clip", "local-dir:/nowhere"], "no CLIP model in folder"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--checkpoint", "/nowhere/weights.pt"], "/nowhere/weights.pt"),
    ],
)
def test_what_the_user_can_mend_is_one_line(folder, change, words, capsys):
    assert cli.main(arguments("scan", folder, *change)) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("own_test_images", [pytest.param(False, marks=pytest.mark.slow), True])
def test_drill_prints_figures_and_writes_them(folder, capsys, own_test_images):
    file = folder / "new" / "drill.json"
    more = ["--test-images", str(folder / "images")] if own_test_images else []
    options = ["--attack", "blended", "--rate", "0.2", "--target", "1", "--json", str(file)]
    options += ["--image-size", "48"]
    assert cli.main(arguments("drill", folder, *options, *more)) == 0
    printed = capsys.readouterr().out
    assert "clean-trained network" in printed
    assert "page: " in printed
    figures = json.loads(file.read_text())
    assert (figures["attack"], figures["rate"], figures["target"]) == ("Blended", 0.2, 1)
    kept = sum(figures["split"].values())
    assert kept == SIZE if own_test_images else 0.75 * SIZE < kept < 0.83 * SIZE
