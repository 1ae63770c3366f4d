from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cgd_wrap import CGDConfig
from cgd_wrap.backdoorbench import (
    config_from_settings,
)

INTEGRATION = Path(__file__).parents[2] / "integrations" / "backdoorbench"


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
