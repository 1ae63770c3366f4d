from __future__ import annotations

import dataclasses
import logging

import pytest

from cgd_wrap import CGDConfig
from cgd_wrap.config.settings import REPAIRED

REFERENCE_YAML = """
alpha: 5e-4
beta: 0.03
sigma1: 0.25
sigma2: 0.05
temperature: 2
tolerance: 1.5
epochs: 7
batch_size: 128
lr: 1e-2
wd: 0.0005
lr_scheduler: CosineAnnealingLR
amp: true
sgd_momentum: 0.9
random_seed: 3
prefetch: false
device: cuda:0
num_workers: 4
dataset: cifar10
dataset_path: ./data
"""


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


# --- the value ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_all_faults_are_reported_at_once():
    with pytest.raises(ValueError, match="CGDConfig") as caught:
        CGDConfig(epochs=0, temperature=-1.0, momentum=1.0, seed=-1, normalise_by="sample")
    for name in ("epochs=0", "temperature=-1.0", "momentum=1.0", "seed=-1", "normalise_by"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigma_clean", 1.0), ("epsilon", 0.0), ("epochs", 1.5), ("epochs", True),
        ("learning_rate", float("nan")), ("guidance_weight", float("inf")), ("keep_mixed", 1),
        ("scan_batch_size", 0), ("tolerance", 0), ("lr_schedule", "step"), ("seed", None),
        ("prompts", ()), ("prompts", 5), ("prompts", ("a photo of a {}", 3)),
        ("prompts", "a photo"), ("prompts", ["a {}", "photo"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CGDConfig(**{field: value})


def test_triggered_threshold_beyond_the_clean_one_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        CGDConfig(sigma_clean=0.1, sigma_triggered=0.2)


def test_frozen():
    config = CGDConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    assert hash(config) == hash(CGDConfig())


def test_replace_validates_anew():
    assert CGDConfig().replace(epochs=3) == CGDConfig(epochs=3)
    with pytest.raises(ValueError, match="epochs"):
        CGDConfig().replace(epochs=0)


def test_paper_has_the_references_numbers():
    paper = CGDConfig.paper()
    expected = {
        "sigma_clean": 0.2, "sigma_triggered": 0.1, "guidance_weight": 5e-4,
        "unlearning_weight": 0.025, "temperature": 3.0, "epsilon": 1e-6, "corner_power": 0.0,
        "normalise_by": "batch", "keep_mixed": True, "scaled_clip_logits": False,
        "prompts": "a photo of a {}", "suspicious_epochs": 5, "suspicious_runs": 3,
        "suspicious_optimizer": "adam", "suspicious_learning_rate": 3e-4,
        "suspicious_schedule": "constant",
        "suspicious_weight_decay": 5e-4, "suspicious_batch_size": 256, "tolerance": 1.0,
        "epochs": 10, "batch_size": 256, "learning_rate": 0.01, "momentum": 0.0,
        "weight_decay": 5e-4, "lr_schedule": "constant", "max_batches_per_epoch": 200,
        "doubt_labels": False, "reference_scores": True,
    }  # fmt: skip
    assert {name: getattr(paper, name) for name in expected} == expected
    assert CGDConfig.paper(epochs=3) == paper.replace(epochs=3)


# --- on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [CGDConfig(), CGDConfig.paper(), CGDConfig(prompts=("a {}", "été {}"), epsilon=1e-12)]
)
def test_yaml_round_trip(config, tmp_path):
    config.to_yaml(tmp_path / "config.yaml")
    assert CGDConfig.from_yaml(tmp_path / "config.yaml") == config
    assert CGDConfig.from_dict(config.as_dict()) == config


def test_own_names_start_from_the_defaults(yaml_file):
    path = yaml_file("epochs: 3\nlearning_rate: 1e-2\n")
    assert CGDConfig.from_yaml(path) == CGDConfig(epochs=3, learning_rate=0.01)


def test_reference_keys_are_read_and_start_from_its_preset(yaml_file, caplog):
    with caplog.at_level(logging.INFO):
        config = CGDConfig.from_yaml(yaml_file(REFERENCE_YAML))
    assert "dataset, dataset_path, device, num_workers" in caplog.text
    assert config == CGDConfig.paper(
        guidance_weight=5e-4, unlearning_weight=0.03, sigma_clean=0.25, sigma_triggered=0.05,
        temperature=2, tolerance=1.5, epochs=7, batch_size=128, learning_rate=0.01,
        weight_decay=0.0005, lr_schedule="cosine", mixed_precision="fp16", momentum=0.9, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gamma: 0.1", "unknown settings .'gamma'."),
        ("prefetch: true", "prefetch"),
        ("lr_scheduler: ReduceLROnPlateau", "lr_scheduler"),
        ("learning_rate: much", "learning_rate='much'"),
    ],
)
@pytest.mark.parametrize("rest", ["alpha: 0.1", "epochs: 3"])
@pytest.mark.usefixtures("unchecked")
def test_unknown_and_ignored_settings_are_refused(line, message, rest, yaml_file):
    with pytest.raises(ValueError, match=message):
        CGDConfig.from_yaml(yaml_file(f"{rest}\n{line}\n"))


@pytest.mark.parametrize("text", ["", "- alpha\n", "alpha"])
def test_a_file_without_settings_is_refused(text, yaml_file):
    with pytest.raises(ValueError, match="mapping of settings"):
        CGDConfig.from_yaml(yaml_file(text))


def test_from_scratch_is_what_the_default_is_for_an_untrained_model():
    scratch, default = CGDConfig.from_scratch(epochs=3), CGDConfig(epochs=3)
    assert default.depends_on_model
    assert not scratch.depends_on_model
    assert scratch.decided(trained=True) == scratch == default.decided(trained=False)
    repaired = default.decided(trained=True)
    assert repaired.unlearning_weight > scratch.unlearning_weight
    assert repaired.early_exposure > scratch.early_exposure == 0
    assert scratch.replace(**dict.fromkeys(REPAIRED)) == default


@pytest.mark.parametrize("name", REPAIRED)
def test_a_given_number_counts_whatever_the_model(name):
    config = CGDConfig(**{name: 0.5})
    assert config.depends_on_model
    for trained in (True, False):
        assert getattr(config.decided(trained=trained), name) == 0.5


def test_the_paper_does_not_ask_what_the_model_knows():
    assert not CGDConfig.paper().depends_on_model
