"""The genuine result, and the scripts that are copied into BackdoorBench's tree."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from attack_record import WRITTEN, write_split, write_tree
from launching import environment, start_python

from cgd_wrap.backdoorbench import (
    clean_images,
    poisoned_samples,
    read_attack_result,
    triggered_samples,
)
from cgd_wrap.demo.run import CLIP

GENUINE = Path(__file__).parents[3] / "shared" / "backdoorbench"
INTEGRATION = Path(__file__).parents[2] / "integrations" / "backdoorbench"


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """A copy of a tree with a result that BackdoorBench's own code wrote."""
    if not GENUINE.is_dir():
        pytest.skip("needs a result of BackdoorBench beside the repository, not part of it")
    tree = tmp_path_factory.mktemp("genuine") / "bench"
    shutil.copytree(GENUINE, tree, copy_function=shutil.copyfile)
    for path in tree.rglob("*"):
        path.chmod(0o755)
    shutil.copytree(INTEGRATION, tree, dirs_exist_ok=True)
    return tree


def run(script, arguments, tree):
    """The return code, what it printed, and its errors; warnings are some."""
    process = start_python("-W", "error", script, *arguments, folder=tree)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


def test_a_genuine_result_is_read_as_its_maker_checked_it(genuine):
    folder = genuine / "record" / "badnet_small"
    checked = json.loads((folder / "verify.json").read_text())
    result = read_attack_result(folder)
    train, test = clean_images(result.data_set, result.data_folder())
    poisoned, triggered = poisoned_samples(result, train), triggered_samples(result, test)
    assert result.model_name == checked["scalars"]["model_name"]
    lengths = checked["lengths"]
    assert [len(part) for part in (poisoned, triggered, train, test)] == [
        lengths[name] for name in ("bd_train", "bd_test", "clean_train", "clean_test")
    ]
    where = poisoned.is_poisoned.nonzero().squeeze(1).tolist()
    assert where == checked["poisoned_indices"]
    top, _, left, _ = checked["trigger_bbox"]
    for index in range(len(train)):
        image, label = poisoned[index]
        rows, columns = (np.asarray(image) != np.asarray(train[index][0])).any(axis=2).nonzero()
        assert (len(rows) > 0) is (index in where)
        if len(rows):
            assert label == 0
            assert rows.min() >= top
            assert columns.min() >= left


@pytest.mark.slow
def test_the_script_runs_in_the_tree_of_a_genuine_result(genuine):
    settings = genuine / "config" / "defense" / "cgd" / "cifar10.yaml"
    with settings.open("a") as file:  # the demo's CLIP knows shapes, not CIFAR's classes
        file.write("allow_missing_classes: true\nsuspicious_epochs: 1\nsuspicious_side: 16\n")
        file.write("max_batches_per_epoch: 1\n")
    arguments = [
        "--result_file", "badnet_small", "--yaml_path", "./config/defense/cgd/cifar10.yaml",
        "--dataset", "cifar10", "--dataset_path", "./data_badnet_small", "--device", "cpu",
        "--epochs", "1", "--batch_size", "64", "--num_workers", "0", "--clip", CLIP,
        "--progress", "False", "--pin_memory", "True",
    ]  # fmt: skip
    code, _, errors = run("defense/cgd.py", arguments, genuine)
    assert code == 0, errors
    folder = genuine / "record" / "badnet_small"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found >= WRITTEN
    before = json.loads((folder / "defense/cgd/cgd_summary.json").read_text())["before"]
    checked = json.loads((folder / "verify.json").read_text())
    assert (before["test_acc"], before["test_asr"]) == (checked["CA"], checked["ASR"])
    logs = list((folder / "defense" / "cgd" / "log").iterdir())
    assert "before: clean accuracy 10.0%" in logs[0].read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "gtsrb"], "--dataset is 'gtsrb', but the attack on badnet used 'cifar10'"),
        (["--model", "resnet18"], "--model is 'resnet18'"),
        (["--client_optimizer", "adam"], "--client_optimizer has no meaning for this defence"),
        (["--device", "cuda:0,1"], "run torchrun"),
        (["--prefetch", "True"], "prefetch"),
    ],
)
def test_the_script_refuses_what_it_can_only_ignore(tmp_path, monkeypatch, arguments, words):
    write_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("cgd_script", INTEGRATION / "defense" / "cgd.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    parser = argparse.ArgumentParser()
    script.CGD.add_arguments(parser)
    settings = str(INTEGRATION / "config" / "defense" / "cgd" / "cifar10.yaml")
    given = ["--yaml_path", settings, "--device", "cpu", *arguments]
    with pytest.raises(ValueError, match=words):
        start(script.CGD, parser.parse_args(given))


def start(defence_class, arguments):
    """As far as the script's own refusals go, and no further if there are none."""
    defence = defence_class(arguments)
    defence.set_result("badnet")
    defence.mitigation()


# --- the launcher for the clean split -----------------------------------------------------------


# BackdoorBench is no package, and its licence keeps it out of here: this has the calls of its
# loader and of the head of its scripts.
HOST = """
import torch
from cgd_wrap.backdoorbench.result import read_attack_result
from attack_record import loaded


def load_attack_result(save_path):
    torch.load(save_path)  # as there: by itself, torch refuses the file
    return loaded(save_path.rsplit("/", 1)[0])
"""

SCRIPT = """
import argparse, json
import numpy as np
from utils.save_load_attack import load_attack_result

parser = argparse.ArgumentParser()
parser.add_argument("--result_file")
parser.add_argument("--ratio", type=float)
args = parser.parse_args()
if __name__ == "__main__":
    clean = load_attack_result("record/" + args.result_file + "/attack_result.pt")["clean_train"]
    labels = [clean.wrapped_dataset[i][1] for i in range(len(clean.wrapped_dataset))]
    print(json.dumps({"labels": labels, "ratio": args.ratio, "infinite": np.infty == np.inf}))
"""


def test_the_launcher_gives_a_script_the_clean_split(tmp_path, monkeypatch):
    folder = write_tree(tmp_path)
    write_split(folder, [3, 1, 6, 3])
    for name, text in (("utils/save_load_attack.py", HOST), ("defense/fp.py", SCRIPT)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(INTEGRATION / "split_clean.py", tmp_path)
    path = f"{Path(__file__).parent}{os.pathsep}{environment()['PYTHONPATH']}"
    monkeypatch.setenv("PYTHONPATH", path)
    options = ["--defense", "fp", "--result_file", "badnet"]
    code, printed, errors = run("split_clean.py", options, tmp_path)
    assert code == 0, errors
    got = json.loads(printed)
    assert got == {"labels": [3, 0, 0, 3], "ratio": 1.0, "infinite": True}
    _, _, errors = run("split_clean.py", ["--defense", "fp", "--ratio=0.05"], tmp_path)
    assert "['--ratio'] choose from truly clean data" in errors
