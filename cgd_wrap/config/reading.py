"""Settings from and to mappings and YAML files, under our names or the reference's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cgd_wrap.config.calibration import Calibration
from cgd_wrap.config.reference_files import (
    HOST_KEYS,
    KEYS,
    REFERENCE_KEYS,
    as_number,
    translated,
)
from cgd_wrap.config.setting import Setting
from cgd_wrap.files import write_atomically

logger = logging.getLogger(__name__)


def is_reference(values: Mapping[str, Any]) -> bool:
    """Whether some of the keys are those of the reference's settings files."""
    return bool(KEYS & set(values))


def from_reference(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The reference's keys as arguments of ``CGDConfig``; keys of its host are named in the log.

    Raises:
        ValueError: for unknown keys, or an option that we can't honour.
    """
    left_out = sorted(HOST_KEYS & set(values))
    if left_out:
        logger.info("Left to the host program: %s.", ", ".join(left_out))
    return known_settings(translated(values), settings)


def known_settings(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Values under our names as arguments of ``CGDConfig``.

    Raises:
        ValueError: some names are no settings; they are named.
    """
    unknown = sorted(set(values) - {*settings, "calibration"})
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; the settings are {sorted(settings)}, or the reference's "
            f"{sorted(REFERENCE_KEYS)}"
        )
    found = dict(values)
    if isinstance(found.get("prompts"), list):
        found["prompts"] = tuple(found["prompts"])
    if isinstance(found.get("calibration"), Mapping):
        found["calibration"] = Calibration.from_dict(found["calibration"])
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, with numbers such as 5e-4 as numbers.

    Raises:
        ValueError: the file holds no mapping.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    numbers = {name: as_number(value) for name, value in values.items()}
    if isinstance(numbers.get("calibration"), dict):
        thresholds = numbers["calibration"]
        numbers["calibration"] = {name: as_number(value) for name, value in thresholds.items()}
    return numbers


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, in its order; as a whole file or not at all."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())
