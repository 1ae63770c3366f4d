"""Settings from and to mappings and YAML files, under our names or the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from cgd_wrap.escaping import brief, escaped_logger, printable

logger = escaped_logger(__name__)


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
        ValueError: the file is no YAML, holds no mapping, or a setting has parts within parts.
    """
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except Exception as error:  # yaml's own constructors raise all kinds
        raise ValueError(f"no YAML that can be read ({brief(error)})") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping of settings, got {type(values).__name__}")
    if numbered := [name for name in values if not isinstance(name, str)]:
        raise ValueError(f"settings have names, got {numbered[:5]}")
    for name, value in values.items():
        parts = value.values() if isinstance(value, dict) else value
        several = isinstance(value, (dict, list, tuple, set))
        if several and any(isinstance(part, (dict, list, tuple, set)) for part in parts):
            # Aliases could make an endless text of it.
            raise ValueError(f"{name!r}: no setting has parts within parts")
    numbers = {name: as_number(value) for name, value in values.items()}
    if isinstance(numbers.get("calibration"), dict):
        thresholds = numbers["calibration"]
        numbers["calibration"] = {name: as_number(value) for name, value in thresholds.items()}
    return numbers


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Put the path of a settings file before what is wrong with the file.

    Raises:
        ValueError: something is wrong with the file.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r}: {printable(str(error))}") from error


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, in its order."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
