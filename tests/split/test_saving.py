"""A saved scan belongs to its data, its names, its thresholds and its calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net

from cgd_wrap import CacheMismatchError, CGDConfig, CGDGuard
from cgd_wrap.config.calibration import DEFAULT, Calibration, thresholds
from cgd_wrap.errors import StoredFileError
from cgd_wrap.sealed import read_sealed, write_sealed
from cgd_wrap.split.saving import DECIDING, FILE, PLACE, WEIGHING


def scanned(config: CGDConfig) -> CGDGuard:
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[CGDGuard, Path]:
    folder = tmp_path_factory.mktemp("saved")
    guard = scanned(quick_config())
    guard.save(folder)
    return guard, folder


def loaded(saved: tuple[CGDGuard, Path], **changes: object) -> CGDGuard:
    guard, folder = saved
    config = guard.config.replace(**changes)
    return CGDGuard.load(
        folder, guard.model, guard.base, class_names=NAMES, clip=guard.clip, config=config
    )


def test_what_was_saved_comes_back(saved: tuple[CGDGuard, Path]) -> None:
    guard, found = saved[0], loaded(saved)
    assert found.verdict == guard.verdict
    assert found.result.doubts == guard.result.doubts
    assert torch.equal(found.split.clean, guard.split.clean)
    assert found.poison_estimate == guard.poison_estimate
    assert found.result.config == guard.config
    assert torch.equal(found.result.labels, guard.targets)


@pytest.mark.parametrize("name", thresholds())
def test_a_result_of_another_calibration_is_refused_by_name(
    name: str, saved: tuple[CGDGuard, Path]
) -> None:
    other = replace(DEFAULT, **{name: getattr(DEFAULT, name) * 1.01})
    with pytest.raises(CacheMismatchError, match=rf"calibration\.{name}: .* -> "):
        loaded(saved, calibration=other)


@pytest.mark.parametrize(
    "changes",
    [
        {"sigma": "fixed"}, {"sigma_clean": 0.21}, {"sigma_triggered": 0.09}, {"sigma_slow": 0.4},
        {"corner_cut": 0.2}, {"poison_cut": None}, {"holdout_fraction": 0.2},
        {"scaled_clip_logits": False},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_result_of_other_thresholds_is_refused_by_name(
    changes: dict[str, object], saved: tuple[CGDGuard, Path]
) -> None:
    assert set(changes) <= set(DECIDING)
    with pytest.raises(CacheMismatchError, match=next(iter(changes))):
        loaded(saved, **changes)


def test_the_saved_configuration_is_the_default_and_holds_the_calibration(
    saved: tuple[CGDGuard, Path], tmp_path: Path
) -> None:
    guard, _ = saved
    own = Calibration(evidence_needed=4.0)
    other = scanned(quick_config(calibration=own))
    other.save(tmp_path)
    found = CGDGuard.load(tmp_path, guard.model, other.base, class_names=NAMES, clip=other.clip)
    assert found.config == other.config
    assert found.config.calibration.evidence_needed == 4.0


def test_what_decided_is_saved_whatever_the_configuration_has_become(tmp_path: Path) -> None:
    guard = scanned(quick_config())
    guard.config = guard.config.replace(
        epochs=7, sigma_clean=0.25, calibration=Calibration(evidence_needed=1.0)
    )
    guard.save(tmp_path)
    found = CGDGuard.load(tmp_path, guard.model, guard.base, class_names=NAMES, clip=guard.clip)
    assert found.config.epochs == 7
    assert found.config.sigma_clean == quick_config().sigma_clean
    assert found.config.calibration == DEFAULT


def test_the_verdict_of_a_resumed_and_of_a_loaded_scan_is_the_same(tmp_path: Path) -> None:
    guards = [
        CGDGuard(
            tiny_net(), tensors(), NAMES, clip=TintReader(), config=quick_config(),
            cache_dir=tmp_path / "cache", progress=False,
        ).scan()
        for _ in range(2)
    ]  # fmt: skip
    guards[0].save(tmp_path)
    guards.append(CGDGuard.load(tmp_path, tiny_net(), tensors(), class_names=NAMES))
    first, *others = (guard.verdict for guard in guards)
    assert first.reasons
    assert all(other == first and other.sentence == first.sentence for other in others)


def test_a_scan_of_an_older_version_comes_back_with_its_warnings(
    saved: tuple[CGDGuard, Path], tmp_path: Path
) -> None:
    """It has no doubts, but the texts of warnings, and neither knowledge nor newer thresholds."""
    found = read_sealed(saved[1] / FILE, PLACE)
    assert found is not None
    tensors, notes = found
    del notes["doubts"], notes["suspicious_knowledge"]
    notes["warnings"] = ["CLIP is weak."]
    for name in WEIGHING:
        del notes["identity"][f"calibration.{name}"], notes["config"]["calibration"][name]
    write_sealed(tmp_path / FILE, tensors, PLACE, notes)
    old = CGDGuard.load(tmp_path, saved[0].model, saved[0].base, class_names=NAMES)
    assert old.result.warnings == ["CLIP is weak. Scan again, to have it weighed."]
    assert old.result.suspicious_knowledge is None
    assert old.verdict.status == "undecided"
    assert old.verdict.reasons[0].code == "warned_by_an_older_version"
    assert "suspicious_model_has_not_learned" not in {why.code for why in old.verdict.reasons}


STRANGE: dict[str, Any] = {
    "format": "two", "identity": [1], "config": {"evil": 1}, "teachers": {}, "poison_estimate": {},
    "doubts": 3, "class_knowledge": "much", "bad": {"x": []},
    "split.clean": torch.ones(9, dtype=torch.bool), "split.mixed": torch.zeros(7, 7),
    "split.other": torch.zeros(3), "map.clip_rank": torch.zeros(9), "held_out": torch.zeros(9),
    "poison_probability": torch.zeros(9), "teacher": torch.zeros(1, 1),
}  # fmt: skip


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", STRANGE)
def test_a_sealed_file_of_another_make_is_refused_by_name(
    name: str, lost: bool, saved: tuple[CGDGuard, Path], tmp_path: Path
) -> None:
    """Row 48: who knows the format can seal anything; it is no traceback of another library."""
    found = read_sealed(saved[1] / FILE, PLACE)
    assert found is not None
    tensors, notes = found
    part: dict[str, Any] = notes if name in notes else tensors
    if lost:
        part.pop(name, None)
    if not lost or name == "split.other":
        part[name] = STRANGE[name]
    write_sealed(tmp_path / FILE, tensors, PLACE, notes)
    with pytest.raises(StoredFileError, match="isn't a guard that cgd-wrap saved"):
        CGDGuard.load(tmp_path, saved[0].model, saved[0].base, class_names=NAMES, clip=TintReader())
