"""The whole way on a result folder, and the settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from attack_record import SIZES, WRITTEN, write_tree

from cgd_wrap import CGDConfig, cli
from cgd_wrap.backdoorbench import (
    build_network,
    clean_images,
    config_from_settings,
    defend_folder,
    image_transform,
    read_attack_result,
    triggered_samples,
)
from cgd_wrap.backdoorbench.epochs import EpochRows
from cgd_wrap.backdoorbench.measuring import BenchData
from cgd_wrap.demo.run import CLIP
from cgd_wrap.train.fit import EpochRecord

INTEGRATION = Path(__file__).parents[2] / "integrations" / "backdoorbench"


class ByBrightness:
    """A zero-shot classifier of the made-up images: class k is 19 k brighter than black."""

    def fingerprint(self):
        return "by brightness"

    def logits(self, images):
        level = images.mean(dim=(1, 2, 3)) * 255 - 30
        return -((level[:, None] - 19 * torch.arange(10.0)) ** 2) / 40


def quick(**changes):
    numbers = {"epochs": 2, "suspicious_epochs": 1, "batch_size": 32, "holdout_fraction": 0.1}
    return CGDConfig(**(numbers | {"suspicious_batch_size": 32} | changes))


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


def test_rows_and_checkpoints_of_the_epochs(defended, tmp_path):
    folder, _ = defended
    result = read_attack_result(folder)
    model = build_network(result.model_name, 10, result.weights).eval()
    _, test = clean_images("cifar10", result.data_folder())
    steady = image_transform("cifar10", (32, 32), augment=False)
    bench = BenchData(
        test.with_transform(steady), triggered_samples(result, test).with_transform(steady)
    )
    epochs = EpochRows(bench, tmp_path / "state.pt", save_every=2)
    epochs(EpochRecord(1, 0.5, 0.75, 0.25, -0.5, 0.1, None, 3.0), model)
    assert not (tmp_path / "state.pt").exists()
    epochs(EpochRecord(2, 0.5, 0.75, 0.25, -0.5, 0.1, 0.875, 3.0), model)
    assert [row["epoch"] for row in epochs.rows] == [0, 1]
    assert [row["held_out_acc"] for row in epochs.rows] == [None, 0.875]
    assert bench.measure(model).as_row().items() <= epochs.rows[0].items()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["epoch_current"] == 2
    build_network(result.model_name, 10, state["model"])


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data_set", ["cifar10", "cifar100", "gtsrb", "tiny"])
def test_the_shipped_settings_are_the_default_preset(data_set):
    path = INTEGRATION / "config" / "defense" / "cgd" / f"{data_set}.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["dataset"] == data_set
    settings.pop("clip")
    assert config_from_settings(settings) == CGDConfig()


def test_settings_follow_preset_and_reference_keys():
    assert config_from_settings({"preset": "paper"}) == CGDConfig.paper()
    reference = {"alpha": "5e-4", "beta": 0.025, "sigma1": 0.2, "sigma2": 0.1, "temperature": 3,
                 "tolerance": 1.0, "lr": 0.01, "wd": 5e-4, "epochs": 10, "batch_size": 256,
                 "device": "cuda", "target_label": 0, "prefetch": False}  # fmt: skip
    assert config_from_settings(reference) == CGDConfig.paper()
    mixed = config_from_settings({"preset": "default", "sigma1": 0.35, "corner_power": 2.0})
    assert (mixed.sigma_clean, mixed.sigma_slow, mixed.corner_power) == (0.35, 0.35, 2.0)
    assert mixed.guidance_weight == CGDConfig().guidance_weight
    options = config_from_settings({"lr_scheduler": "constant", "amp": True})
    assert (options.lr_schedule, options.mixed_precision) == ("constant", "fp16")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "best"}, "preset must be one of"),
        ({"alfa": 1}, r"unknown settings \['alfa'\]"),
        ({"prefetch": True}, "prefetch"),
        ({"lr_scheduler": "ReduceLROnPlateau"}, "lr_scheduler"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        config_from_settings(settings)


# --- the command --------------------------------------------------------------------------------


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
        (["images", "--model", "resnet18"], "missing: ['out', 'weights_out']"),
        (["--backdoorbench", "/nowhere"], "/nowhere"),
    ],
)
def test_the_command_says_what_is_missing_or_too_much(options, words, capsys):
    assert cli.main(["defend", *options]) == 1
    assert words in capsys.readouterr().err
