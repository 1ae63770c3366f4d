from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from attack_record import SIZES, WRITTEN, write_tree

from cgd_wrap import CGDConfig, TrainingDivergedError, cli
from cgd_wrap.backdoorbench import (
    build_network,
    clean_images,
    defend_folder,
    read_attack_result,
    triggered_samples,
)
from cgd_wrap.demo.run import CLIP


class ByBrightness:
    """A zero-shot classifier of the made-up images: class k is 19 k brighter than black."""

    def fingerprint(self):
        return "by brightness"

    def logits(self, images):
        level = images.mean(dim=(1, 2, 3)) * 255 - 30
        return -((level[:, None] - 19 * torch.arange(10.0)) ** 2) / 40


def quick(**changes):
    numbers = {"epochs": 2, "batch_size": 32, "holdout_fraction": 0.1}
    brief = {"suspicious_epochs": 1, "suspicious_batch_size": 32, "suspicious_side": 16}
    return CGDConfig(**(numbers | brief | changes))


@pytest.fixture(scope="module")
def defended(tmp_path_factory):
    folder = write_tree(tmp_path_factory.mktemp("bench"))
    return folder, defend_folder(
        folder, clip=ByBrightness(), config=quick(), save_every=2, progress=False
    )


def test_everything_that_the_reference_writes_is_there(defended):
    folder, defence = defended
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found >= WRITTEN | {"defense/cgd/checkpoint/cgd_state_dict.pt"}
    assert set(defence.files.values()) <= {folder / name for name in found}


def test_a_training_that_diverged_leaves_no_result(tmp_path):
    """FAULTS row 53."""
    folder = write_tree(tmp_path)
    config = quick(epochs=1, learning_rate=1e30, max_gradient_norm=None)
    with pytest.raises(TrainingDivergedError, match="the training has diverged"):
        defend_folder(folder, clip=ByBrightness(), config=config, progress=False)
    assert not list((folder / "defense").rglob("*.pt"))


def test_the_result_holds_the_repaired_weights(defended):
    folder, defence = defended
    attacked = read_attack_result(folder)
    written = torch.load(folder / "defense" / "cgd" / "defense_result.pt", weights_only=True)
    assert (written["model_name"], written["num_classes"]) == ("squeezenet1_0", 10)
    build_network(written["model_name"], 10, written["model"])
    for name, value in defence.guard.model.state_dict().items():
        assert torch.equal(written["model"][name], value.cpu())
    assert any(not torch.equal(v, attacked.weights[n]) for n, v in written["model"].items())


def test_the_split_files_agree_with_the_guard(defended):
    folder, defence = defended
    guard, awc = defence.guard, folder / "AWC"
    clean = json.loads((awc / "clean_indices.json").read_text())
    assert set(clean) == set(guard.split.clean.nonzero().squeeze(1).tolist())
    scores = json.loads((awc / "entropy_score.json").read_text())
    assert len(scores) == SIZES[0]
    assert [row[2] for row in scores.values()] == [i % 5 == 1 for i in range(SIZES[0])]
    logits = torch.load(awc / "logits.pt", weights_only=True)
    assert logits["logits_clip"].shape == logits["logits_kfold"].shape == (SIZES[0], 10)
    assert logits["poisoned_indices"].tolist() == [*range(1, SIZES[0], 5)]
    assert torch.equal(logits["poison_labels"], guard.targets)
    assert logits["clean_labels"].tolist() == [i % 10 for i in range(SIZES[0])]


def test_the_tables_have_its_columns_and_the_figures_of_each_epoch(defended):
    folder, defence = defended
    with (folder / "defense" / "cgd" / "cgd_df.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    after = defence.after.as_row()
    for name in ("test_acc", "test_asr", "test_ra", "natural_rate"):
        assert float(rows[-1][name]) == pytest.approx(after[name])
    with (folder / "defense" / "cgd" / "cgd_df_summary.csv").open() as file:
        summary = {row[""]: row for row in csv.DictReader(file)}
    assert list(summary) == ["last", "valid_max", "exist_nan_value"]
    assert summary["last"]["test_acc"] == rows[-1]["test_acc"]
    assert float(summary["valid_max"]["test_acc"]) == max(float(r["test_acc"]) for r in rows)


def test_rates_are_counted_image_by_image(defended):
    folder, defence = defended
    result = read_attack_result(folder)
    _, test = clean_images("cifar10", result.data_folder())
    sets = triggered_samples(result, test)
    model, steady = defence.guard.model.eval(), defence.guard.eval_dataset_view.transform
    with torch.no_grad():
        chosen = [int(model(steady(image)[None]).argmax()) for image, _ in sets]
        plain = [int(model(steady(test[int(i)][0])[None]).argmax()) for i in sets.original_index]
    rates = defence.after.rates
    assert rates.attack_success_rate == pytest.approx(np.mean([c == 0 for c in chosen]))
    assert rates.robust_accuracy == pytest.approx(np.mean(np.equal(chosen, sets.original_targets)))
    assert rates.natural_rate == pytest.approx(np.mean([p == 0 for p in plain]))


def test_the_truth_decides_nothing(defended, tmp_path):
    _, defence = defended
    hidden = write_tree(tmp_path)
    state = torch.load(hidden / "attack_result.pt", weights_only=False)
    for entry in state["bd_train"]["bd_data_container"]["data_dict"].values():
        entry["other_info"] = [0, 9]  # the labels before the attack, all wrong
    torch.save(state, hidden / "attack_result.pt")
    other = defend_folder(hidden, clip=ByBrightness(), config=quick(), progress=False)
    assert torch.equal(other.guard.split.clean, defence.guard.split.clean)
    for name, value in other.guard.model.state_dict().items():
        torch.testing.assert_close(value, defence.guard.model.state_dict()[name])


def test_the_command_defends_a_folder(tmp_path, capsys):
    folder = write_tree(tmp_path)
    quick(epochs=1, allow_missing_classes=True).to_yaml(tmp_path / "config.yaml")
    options = ["--clip", CLIP, "--config", str(tmp_path / "config.yaml"), "--quiet"]
    assert cli.main(["defend", "--backdoorbench", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "before: " in printed
    assert "after: " in printed
    assert (folder / "defense" / "cgd" / "defense_result.pt").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backdoorbench", "x", "--model", "resnet18"], "leave them out"),
        (["images", "--model", "resnet18"], "missing: --out, --weights-out"),
        (["--backdoorbench", "/nowhere"], "/nowhere"),
    ],
)
def test_the_command_says_what_is_missing_or_too_much(options, words, capsys):
    assert cli.main(["defend", *options]) == 1
    assert words in capsys.readouterr().err
