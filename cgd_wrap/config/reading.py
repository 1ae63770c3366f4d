"""Settings from and to mappings and YAML files, under our names or the reference's."""

from __future__ import annotations

import itertools
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
from cgd_wrap.files import write_atomically

logger = escaped_logger(__name__)

# Of a settings file; ours have a few thousand characters, and a list in a mapping.
MOST_CHARACTERS, MOST_BRACKETS = 50_000, 20
LARGEST = 2**63 - 1  # what torch takes as a whole number


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
        FileNotFoundError: there is no such file.
        ValueError: the file holds no mapping, a setting has parts within parts, or it is nothing
            that :func:`load_yaml` reads.
    """
    values = _plain_values(path)
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping of settings, got {type(values).__name__}")
    if numbered := [name for name in values if not isinstance(name, str)]:
        raise ValueError(f"settings have names, got {numbered[:5]}")
    for name, value in values.items():
        parts = value.values() if isinstance(value, dict) else value
        several = isinstance(value, (dict, list, tuple, set))
        if several and any(isinstance(part, (dict, list, tuple, set)) for part in parts):
            raise ValueError(f"{name!r}: no setting has parts within parts")
    numbers = {name: as_number(value) for name, value in values.items()}
    if isinstance(numbers.get("calibration"), dict):
        thresholds = numbers["calibration"]
        numbers["calibration"] = {name: as_number(value) for name, value in thresholds.items()}
    return numbers


def load_yaml(path: Path) -> Any:
    """Read the plain values of a YAML file: texts, numbers, lists and mappings; never objects.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too long or too deep, isn't YAML, or asks for anything else, such as
            Python objects or aliases (``*name``), by which a short file can stand for an endless
            one.
    """
    with faults_named(path):
        return _plain_values(path)


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


def _plain_values(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        try:
            return _checked_values(file.read(MOST_CHARACTERS + 1))
        except RecursionError as error:
            raise ValueError("can't be read as YAML: it is nested too deeply") from error
        except yaml.MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise ValueError(f"can't be read as YAML: {line}{error.problem}") from error
        except Exception as error:  # PyYAML lets some errors of int() and of its own code through
            raise ValueError(f"can't be read as YAML: {brief(error)}") from error


def _checked_values(text: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS} characters")
    if _deepest_bracket(text) > MOST_BRACKETS:  # PyYAML would take long to find out
        raise RecursionError
    values = yaml.safe_load(text)
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("aliases (*name) are not read; write the value out")
    if any(abs(value) > LARGEST for value in _whole_numbers(values)):
        raise ValueError(f"it holds a whole number beyond {LARGEST}")
    return values


def _whole_numbers(values: Any) -> Iterator[int]:
    if isinstance(values, int):
        yield values
    elif isinstance(values, (list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _whole_numbers(value)


def _deepest_bracket(text: str) -> int:
    steps = (1 if character in "[{" else -1 for character in text if character in "[]{}")
    return max(itertools.accumulate(steps), default=0)


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, in its order; as a whole file or not at all."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())
