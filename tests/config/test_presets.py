"""Which settings a training after the scan heeds; every other one is refused by name."""

from __future__ import annotations

import pytest
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.config import presets
from cgd_wrap.config.setting import STAGES, TRAINING
from cgd_wrap.config.settings import SETTINGS

OF_TRAINING = {name for name, one in SETTINGS.items() if one.stage in TRAINING}
# Settings that a review found accepted and unread by fit.
UNREAD = (
    "sigma_clean", "sigma_triggered", "sigma", "sigma_slow", "corner_cut", "poison_cut",
    "scaled_clip_logits", "reference_scores", "prompts", "clip_precision", "suspicious_epochs",
    "suspicious_runs", "suspicious_optimizer", "suspicious_learning_rate", "suspicious_schedule",
    "suspicious_weight_decay", "suspicious_batch_size", "holdout_fraction", "on_bad_sample",
    "max_bad_fraction", "allow_missing_classes", "scan_batch_size", "scan_timeout",
)  # fmt: skip


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=quick_config(), progress=False
    ).scan()


def test_every_setting_has_a_stage() -> None:
    assert {one.stage for one in SETTINGS.values()} == set(STAGES)
    assert set(UNREAD) == set(SETTINGS) - OF_TRAINING


@pytest.mark.parametrize("name", [*UNREAD, "calibration"])
def test_fit_refuses_what_concerns_scan_and_split(name: str, guard: CGDGuard) -> None:
    value = getattr(guard.config, name)
    with pytest.raises(ValueError, match=rf"{name}.*scan and the split.*scan\(\) again"):
        guard.fit(**{name: value})


def test_fit_names_all_faults_at_once(guard: CGDGuard) -> None:
    with pytest.raises(ValueError, match=r"epoch'.*sigma_clean") as caught:
        guard.fit(sigma_clean=0.3, holdout_fraction=0.2, epoch=3)
    assert "holdout_fraction" in str(caught.value)
    assert "learning_rate" in str(caught.value)  # what a training has


def test_an_accelerator_of_the_users_decides_the_precision() -> None:
    with pytest.raises(ValueError, match=r"mixed_precision is the accelerator's"):
        presets.for_training(SETTINGS, {"mixed_precision": "bf16"}, True)
    assert presets.for_training(SETTINGS, {"mixed_precision": "bf16"}, False)


def test_what_concerns_the_training_passes() -> None:
    changes = {name: getattr(CGDConfig(), name) for name in OF_TRAINING}
    assert presets.for_training(SETTINGS, changes, False) == changes
