"""The presets, and which settings a training after the scan heeds."""

from __future__ import annotations

import pytest
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net
from torch.utils.data import DataLoader

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.config import presets
from cgd_wrap.config.setting import STAGES, TRAINING
from cgd_wrap.config.settings import REPAIRED, SETTINGS

OF_TRAINING = {name for name, one in SETTINGS.items() if one.stage in TRAINING}
# Settings that a review found accepted and unread by fit.
UNREAD = (
    "sigma_clean", "sigma_triggered", "sigma", "sigma_slow", "corner_cut", "poison_cut",
    "scaled_clip_logits", "reference_scores", "prompts", "clip_precision", "clip_resize",
    "jpeg_edge", "suspicious_network", "suspicious_side", "suspicious_epochs", "suspicious_runs",
    "suspicious_optimizer", "suspicious_learning_rate", "suspicious_schedule",
    "suspicious_weight_decay", "suspicious_batch_size", "holdout_fraction", "on_bad_sample",
    "max_bad_fraction", "allow_missing_classes", "scan_batch_size", "scan_timeout",
    "sample_timeout", "control",
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


# --- presets ------------------------------------------------------------------------------------


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


def test_from_scratch_is_what_the_default_is_for_an_untrained_model():
    scratch, default = CGDConfig.from_scratch(epochs=3), CGDConfig(epochs=3)
    assert default.depends_on_model
    assert not scratch.depends_on_model
    assert scratch.decided(trained=True) == scratch == default.decided(trained=False)
    repaired = default.decided(trained=True)
    assert repaired.unlearning_weight > scratch.unlearning_weight
    assert repaired.early_exposure > scratch.early_exposure == 0
    assert scratch.replace(**dict.fromkeys(REPAIRED)) == default


def test_the_paper_does_not_ask_what_the_model_knows():
    assert not CGDConfig.paper().depends_on_model


# --- what a stopping rule gets of it ------------------------------------------------------------


def loader_of(guard: CGDGuard) -> DataLoader:
    return DataLoader(guard.base, 40)


def test_fit_without_tolerance_runs_on_whatever_the_guards_is() -> None:
    config = quick_config(tolerance=1e-9, epochs=3)
    guard = CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()
    assert len(guard.fit(tolerance=None, learning_rate=1.0)) == 3


def test_a_tolerance_without_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = quick_config(holdout_fraction=0.0, epochs=1)
    guard = CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()
    guard.fit(tolerance=2.0)
    assert "tolerance=2.0 has no effect" in caplog.text
    caplog.clear()
    guard.fit(tolerance=2.0, validation_loader=loader_of(guard))
    assert "no effect" not in caplog.text


def test_a_validation_loader_needs_no_scan() -> None:
    guard = CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=quick_config(), progress=False
    )
    stopping = guard.stopping(3.0, loader=loader_of(guard))
    assert stopping is not None
    assert stopping.rule.tolerance == 3.0
