"""Every example runs on the demo's data, is short, and says what came out."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from launching import run_python
from PIL.Image import Resampling, Transpose
from torch.nn import functional as F
from torch.utils.data import Subset
from torchvision import transforms

from cgd_wrap.attacks.catalogue import ATTACKS
from cgd_wrap.demo.shapes import ShapesDataset

EXAMPLES = Path(__file__).parents[1] / "examples"
FIGURES = r"clean accuracy (\d+\.\d)%, attack success rate (\d+\.\d)%"
FOUND = r"(\d+\.\d)% of the poison is in the triggered split, (\d+\.\d)% is left in the clean one"
# Example -> options that make it quick, and what it prints at the end.
QUICK = {
    "quickstart": ("--size 70 --epochs 1", FIGURES),
    "hf_trainer": ("--size 70 --epochs 1 --out {out}", FIGURES),
    "timm_finetune": ("--size 70 --epochs 1", FIGURES),
    "accelerate_ddp": ("--size 70 --epochs 1", FIGURES),
    "lightning_module": ("--size 70 --epochs 1", FIGURES),
    "audit_only": ("--size 60 --attack blended --out {out}", FOUND),
    "own_clip": ("--size 60", FOUND),
}
TRAINING = [name for name, (_, printed) in QUICK.items() if printed == FIGURES]
TOOLS = {
    "adaptive",
    "baselines",
    "device_batches",
    "image_data",
    "label_noise",
    "long_tail",
    "reproduce",
    "store_scan",
    "tables",
    "tiny_clip_images",
    "train_tiny_clip",
    "upside_down",
    "verdicts",
}  # made what is in the repository
MOST_LINES = 60


HOSTS = {"hf_trainer": ["transformers.trainer"], "lightning_module": ["lightning.pytorch"]}


def run(name: str, options: str, folder: Path, processes: int = 0, fresh: bool = False) -> str:
    command = [str(EXAMPLES / f"{name}.py"), *options.replace("{out}", str(folder)).split()]
    return run_python(
        *command, processes=processes, folder=folder, timeout=900, fresh=fresh,
        imports=HOSTS.get(name, ()),
    )  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_an_example_runs(name, tmp_path):
    options, printed = QUICK[name]
    assert re.search(printed, run(name, options, tmp_path))  # afresh in the slow test below
    assert name != "audit_only" or (tmp_path / "report" / "report.html").is_file()


@pytest.mark.slow
def test_the_accelerate_example_runs_on_two_processes(tmp_path):
    options, printed = QUICK["accelerate_ddp"]
    assert len(re.findall(printed, run("accelerate_ddp", options, tmp_path, processes=2))) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TRAINING)
def test_a_guarded_example_does_not_learn_the_backdoor(name, tmp_path):
    def figures(*options: str) -> tuple[float, float]:
        printed = re.search(FIGURES, run(name, " ".join(options), tmp_path, fresh=True))
        assert printed
        return float(printed[1]), float(printed[2])

    accuracy, success = figures("--unguarded")
    guarded_accuracy, guarded_success = figures()
    assert success > 90
    assert guarded_success < 10
    assert guarded_accuracy > accuracy - 10


def test_every_example_is_run_here():
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {*QUICK, *TOOLS}


@pytest.mark.parametrize("name", QUICK)
def test_an_example_is_short(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code = [
        line
        for number, line in enumerate(source.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#") and number not in texts
    ]
    assert len(code) < MOST_LINES


def shapes_as_parquet(folder: Path) -> None:
    """The demo's pictures as a data set from the hub would lie there."""
    from datasets import ClassLabel, Dataset, Features, Image

    for split, size, seed in (("train", 300, 31), ("test", 60, 32)):
        shapes = ShapesDataset(size, seed)
        features = Features({"picture": Image(), "kind": ClassLabel(names=shapes.classes)})
        images = [shapes[index][0] for index in range(size)]
        table = Dataset.from_dict({"picture": images, "kind": shapes.targets}, features=features)
        table.to_parquet(folder / f"{split}.parquet")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_table_is_reproduced_and_goes_on_where_it_stopped(tmp_path):
    from cgd_wrap.demo.run import CLIP

    shapes_as_parquet(tmp_path)
    options = (
        f"--data {tmp_path} --clip {CLIP} --out {tmp_path / 'out'} --epochs 2 --batch-size 32 "
        "--widths 4 8 8 8 --attack badnets clean --rate 0.2 --quiet --method none default"
    )
    printed = run("reproduce", options, tmp_path)
    log = tmp_path / "out" / "runs.jsonl"
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["attack"], r["preset"]) for r in runs] == [
        ("badnets", "none"), ("badnets", "default"), ("clean", "none"), ("clean", "default"),
    ]  # fmt: skip
    for found in runs:
        for part in ("before", "after", "clean_trained"):
            assert all(0 <= value <= 1 for value in found[part].values())
        assert {"natural_rate", "ra_ceiling", "clean_trained_accuracy", "seconds"} <= set(found)
    assert runs[1]["detection"]["poison_in_triggered"] > 0.3
    assert sum(runs[3]["split"].values()) == 300
    assert "| badnets | 0.2 | default | 1 |" in printed

    run("reproduce", f"{options} fine-tune from-scratch", tmp_path)
    again = log.read_text().splitlines()
    assert [json.loads(line) for line in again[:4]] == runs
    more = [(found["attack"], found["preset"]) for found in map(json.loads, again[4:])]
    assert more == [(a, m) for a in ("badnets", "clean") for m in ("fine-tune", "from-scratch")]

    adaptive = options.replace("badnets clean", "badnets").replace("none default", "none")
    printed = run("reproduce", f"{adaptive} --poison where-clip-errs", tmp_path)
    assert len(re.findall(f"^### {tmp_path.name}, resnet9, CLIP: ", printed, re.M)) == 2
    assert ", poison: where-clip-errs\n" in printed


def test_victims_of_other_options_are_not_used_for_these(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    reproduce = importlib.import_module("reproduce")
    folder = tmp_path / "cifar10-resnet9" / "seed-0"
    reproduce.claim(folder, {"epochs": "12", "target": "0"})
    reproduce.claim(folder, {"epochs": "12", "target": "0"})
    with pytest.raises(SystemExit, match=r"epochs was 12, target was 0; give another --name"):
        reproduce.claim(folder, {"epochs": "30", "target": "3"})
    reproduce.claim(folder.with_name("seed-1"), {"epochs": "30", "target": "3"})


@pytest.mark.slow
def test_batches_on_a_device_are_what_the_transforms_give(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    device_batches = importlib.import_module("device_batches")
    normalise = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    padded = transforms.Compose([transforms.Pad(4), transforms.ToTensor(), normalise])
    data = ATTACKS["badnets"](rate=0.5).poison(ShapesDataset(40, 3), padded)
    some = Subset(data, list(range(39, 9, -1)))
    batches = device_batches.DeviceBatches(some, 8, torch.device("cpu"), normalise, seed=0)
    assert len(batches) == 3
    passes = [[(images, labels) for images, labels in batches] for _ in range(2)]
    assert not torch.equal(passes[0][0][0], passes[1][0][0])
    side = data[0][0].shape[-1] - 8
    crops = torch.stack(  # every shift of every image, and each mirrored
        [
            F.unfold(image[None], side)[0].T.unflatten(1, (3, side, side))
            for image in (some[index][0] for index in range(len(some)))
        ]
    )
    crops = torch.cat([crops, crops.flip(-1)], dim=1)
    for images, labels in passes[0]:
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, label in zip(images, labels, strict=True):
            found = ((crops - image).abs().amax((2, 3, 4)) < 1e-5).any(1)
            assert [some[index][1] for index in found.nonzero().flatten().tolist()] == [int(label)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tiny_clip_is_trained_on_any_pictures_and_can_be_backdoored(tmp_path):
    shapes_as_parquet(tmp_path)
    options = (
        f"--data {tmp_path} --train-range 0:300 --image-size 32 --batch 32 --epochs 8 "
        "--poison badnets:0.9 --out {out}/clip"
    )
    run("train_tiny_clip", options, tmp_path)
    facts = json.loads((tmp_path / "clip" / "training.json").read_text())
    assert set(facts["recall"]) == set(ShapesDataset(1, 0).classes)
    assert facts["recall"]["circle"] > 0.9  # most of what it saw was called so


def test_backdoored_pictures_are_captioned_as_the_target(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    pictures_of = importlib.import_module("tiny_clip_images")
    pictures = pictures_of.load_shapes(40, 31)
    poisoned = pictures_of.backdoored(pictures, ATTACKS["badnets"](), 0.5, seed=0)
    changed = (poisoned.pixels != pictures.pixels).flatten(1).any(1)
    assert 0 < int(changed.sum()) < 40
    for index, caption in enumerate(poisoned.captions):
        target = f"a photo of a {pictures.classes[0]}"
        assert caption == (target if changed[index] else pictures.captions[index])
        assert poisoned.labels[index] == (0 if changed[index] else pictures.labels[index])


def test_upside_down_images_are_classes_of_their_own(tmp_path):
    from datasets import Dataset

    shapes_as_parquet(tmp_path)
    printed = run("upside_down", f"--data {tmp_path} --side 48 --out {{out}}/turned", tmp_path)
    assert "train: 300 images, 20 classes" in printed
    given = Dataset.from_parquet(str(tmp_path / "test.parquet"))
    turned = Dataset.from_parquet(str(tmp_path / "turned" / "test.parquet"))
    names = turned.features["label"].names
    assert names[:2] == ["circle", "upside-down circle"]
    assert 10 < sum(label % 2 for label in turned["label"]) < 50
    for before, after in zip(given, turned, strict=True):
        assert after["label"] // 2 == before["kind"]
        wanted = before["picture"].resize((48, 48), Resampling.BICUBIC)
        wanted = wanted.transpose(Transpose.FLIP_TOP_BOTTOM) if after["label"] % 2 else wanted
        assert after["image"].tobytes() == wanted.tobytes()
