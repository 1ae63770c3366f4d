from __future__ import annotations

import dataclasses

import pytest

from cgd_wrap import CGDConfig
from cgd_wrap.config.settings import REPAIRED

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


@pytest.mark.parametrize("text", ["", "- alpha\n", "alpha"])
def test_a_file_without_settings_is_refused(text, yaml_file):
    with pytest.raises(ValueError, match="mapping of settings"):
        CGDConfig.from_yaml(yaml_file(text))


@pytest.mark.parametrize("name", REPAIRED)
def test_a_given_number_counts_whatever_the_model(name):
    config = CGDConfig(**{name: 0.5})
    assert config.depends_on_model
    for trained in (True, False):
        assert getattr(config.decided(trained=trained), name) == 0.5


@pytest.mark.parametrize("given", [3, None, "default"])
@pytest.mark.usefixtures("unchecked")
def test_a_calibration_is_a_value_or_a_mapping(given):
    with pytest.raises(ValueError, match="calibration"):
        CGDConfig(calibration=given)


@pytest.mark.usefixtures("unchecked")
def test_a_calibration_can_be_given_as_a_mapping_and_in_part(yaml_file):
    config = CGDConfig.from_yaml(yaml_file("epochs: 3\ncalibration:\n  far_corner_share: 5e-4\n"))
    assert config.calibration.far_corner_share == 5e-4
    assert config.calibration == CGDConfig(calibration={"far_corner_share": 5e-4}).calibration
    assert config.calibration.evidence_needed == CGDConfig().calibration.evidence_needed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"no_guidance": 0.7}, "no_guidance=0.7 must be below"),
        ({"far_corner": float("inf")}, "far_corner=inf"),
        ({1: 2, "other": 3}, "'1', 'other'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_calibration_without_sense_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        CGDConfig(calibration=changes)
