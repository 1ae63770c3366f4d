"""Saving a scan's result as one sealed file, and loading it for the same data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.config.calibration import VERDICT, thresholds
from cgd_wrap.errors import CacheMismatchError, StoredFileError
from cgd_wrap.escaping import brief
from cgd_wrap.files import FORMAT, agreed, check_fingerprint
from cgd_wrap.functional import Split
from cgd_wrap.randomness import plain_torch
from cgd_wrap.scan.subject import Subject
from cgd_wrap.sealed import read_sealed, write_sealed
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.doubts import Doubt
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate
from cgd_wrap.split.power import Power
from cgd_wrap.split.result import ScanResult

ADVICE = "scan again, which a kept cache_dir makes quick, and save the guard again"
FILE, PLACE = "guard.safetensors", {"kind": "guard"}
OLD_NOTES = "guard.json"  # what format 1 had beside it
STORED = ("held_out", "teacher", "poison_probability")  # tensors of a saved result
# Settings that decide the split; a result that was saved under others is refused.
DECIDING = (
    "sigma", "sigma_clean", "sigma_triggered", "sigma_slow", "corner_cut", "poison_cut",
    "holdout_fraction", "scaled_clip_logits", "reference_scores",
)  # fmt: skip
WEIGHING = [name for name, one in thresholds().items() if one.part == VERDICT]


def saved_identity(subject: Subject, config: CGDConfig) -> dict[str, Any]:
    """Collect what a result depends on, as JSON values: data, names, settings, calibration.

    Some samples of the dataset are read.
    """
    return {
        **subject.identity(subject.raw_view()),
        "class_names": list(subject.class_names),
        **{f"calibration.{name}": value for name, value in asdict(config.calibration).items()},
        **{name: getattr(config, name) for name in DECIDING},
    }


def save_result(result: ScanResult, folder: Path, subject: Subject, config: CGDConfig) -> None:
    """Save a scan's result as one sealed file, ``guard.safetensors``.

    Args:
        result: result of a scan; the labels are not stored, but their hash is.
        folder: folder of the file; created if missing.
        subject: the data, model and CLIP that were scanned.
        config: the guard's configuration. What decided the scan is stored as it was then.

    Raises:
        OSError: the file can't be written; on a full disk, with the bytes needed and free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"map.{n}": t for n, t in vars(result.entropy_map).items()}
    tensors |= {f"split.{n}": t for n, t in vars(result.split).items()}
    tensors |= {n: getattr(result, n) for n in STORED}
    decided = {name: getattr(result.config, name) for name in (*DECIDING, "calibration")}
    notes = {
        "format": FORMAT,
        "identity": saved_identity(subject, result.config),
        "config": config.replace(**decided).as_dict(),
        "teachers": asdict(result.teachers),
        "poison_estimate": result.poison_estimate.as_dict(),
        "doubts": [asdict(doubt) for doubt in result.doubts],
        "class_knowledge": result.class_knowledge,
        "suspicious_knowledge": result.suspicious_knowledge,
        "power": None if result.power is None else result.power.as_dict(),
        "bad": {str(index): reason for index, reason in result.bad.items()},
    }
    write_sealed(folder / FILE, tensors, PLACE, notes)
    (folder / OLD_NOTES).unlink(missing_ok=True)


def saved_config(folder: Path) -> CGDConfig:
    """Read the configuration of a saved result; raises what :func:`read_saved` raises."""
    notes = read_saved(folder)[1]
    with _well_formed(folder):
        return CGDConfig.from_dict(notes["config"])


@plain_torch()
def load_result(folder: Path, subject: Subject, config: CGDConfig) -> ScanResult:
    """Load the result that :func:`save_result` wrote, if it belongs to the given data.

    Args:
        folder: folder of the saved result.
        subject: data and class names that the result has to belong to.
        config: configuration whose thresholds and calibration must be those of the saved result.

    Raises:
        FileNotFoundError: there is nothing saved in the folder.
        CacheMismatchError: the result belongs to other data or settings, or was written by another
            version.
        StoredFileError: the file is damaged.
    """
    tensors, stored = read_saved(folder)
    identity = json.loads(json.dumps(saved_identity(subject, config)))
    with _well_formed(folder):
        # What weighs a scan's figures when they are read decided nothing in an older one.
        newer = {name: identity[name] for name in map("calibration.{}".format, WEIGHING)}
        found = newer | dict(stored["identity"])
        wanted = agreed(found, identity)
    check_fingerprint(
        folder, found, wanted,
        advice="Load it with the data and settings that it was saved under, or scan again.",
    )  # fmt: skip
    with _well_formed(folder):
        return _result_of(tensors, stored, subject, config)


def _result_of(
    tensors: dict[str, Tensor], stored: dict[str, Any], subject: Subject, config: CGDConfig
) -> ScanResult:
    parts = {
        kind: {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(kind + ".")}
        for kind in ("map", "split")
    }
    known, learned = stored["class_knowledge"], stored.get("suspicious_knowledge")
    result = ScanResult(
        labels=subject.labels,
        class_names=tuple(subject.class_names),
        entropy_map=EntropyMap(**parts["map"]),
        split=Split(**parts["split"]),
        **{name: tensors[name] for name in STORED},
        teachers=ClipAgreement.from_dict(stored["teachers"]),
        poison_estimate=PoisonEstimate.from_dict(stored["poison_estimate"]),
        bad={int(index): reason for index, reason in stored["bad"].items()},
        doubts=tuple(_doubts_of(stored)),
        class_knowledge=None if known is None else float(known),
        suspicious_knowledge=None if learned is None else float(learned),
        power=None if stored.get("power") is None else Power.from_dict(stored["power"]),
        config=config,
    )
    _check_shapes(result, len(subject.class_names))
    return result


def _doubts_of(stored: dict[str, Any]) -> Iterator[Doubt]:
    """Read the doubts of a saved result; an older version saved them as mere warnings."""
    if "doubts" in stored:
        for doubt in stored["doubts"]:
            yield Doubt(**{**doubt, "classes": tuple(map(int, doubt["classes"]))})
        return
    for warning in stored["warnings"]:
        yield Doubt("warned_by_an_older_version", str(warning), "Scan again, to have it weighed.")


def _check_shapes(result: ScanResult, classes: int) -> None:
    samples, split = len(result.labels), result.split
    masks = [*vars(split).values(), result.held_out]
    scores = [*vars(result.entropy_map).values(), result.poison_probability]
    shaped = all(one.shape == (samples,) for one in (*masks, *scores)) and all(
        mask.dtype == torch.bool for mask in masks
    )
    if not shaped or result.teacher.shape != (int(split.triggered.sum()), classes):
        raise ValueError(f"its tensors aren't those of {samples} samples of {classes} classes")


@contextmanager
def _well_formed(folder: Path) -> Iterator[None]:
    """Say by name that a file isn't ours: its seal is right, and what it holds is not.

    Raises:
        StoredFileError: within the block, something was missing or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StoredFileError(
            f"{folder / FILE} isn't a guard that cgd-wrap saved ({brief(error)}): {ADVICE}"
        ) from error


def read_saved(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the notes of a saved result.

    Raises:
        FileNotFoundError: there is nothing saved in the folder.
        CacheMismatchError: the result was written by another version.
        StoredFileError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no saved guard in {str(folder)!r}: {FILE} is missing")
    found = read_sealed(path, PLACE)
    if found is None and (folder / OLD_NOTES).is_file():
        raise CacheMismatchError(
            f"{folder} was saved by an older version of cgd-wrap (format 1, this one reads "
            f"{FORMAT}), whose files can't be checked for damage: {ADVICE}",
            {"format": (1, FORMAT)},
        )
    if found is None:
        raise StoredFileError(f"{path} is damaged, or isn't a saved guard: {ADVICE}")
    with _well_formed(folder):
        version = int(found[1]["format"])
    if version > FORMAT:
        raise CacheMismatchError(
            f"{folder} was saved by a newer version of cgd-wrap; update cgd-wrap",
            {"format": (version, FORMAT)},
        )
    return found
