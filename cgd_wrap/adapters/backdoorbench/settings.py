"""BackdoorBench's settings (YAML file and command line of a defence) -> our configuration."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cgd_wrap.config import REFERENCE_HOST_KEYS, REFERENCE_KEYS, CGDConfig

logger = logging.getLogger(__name__)

PRESETS: dict[str, Callable[[], CGDConfig]] = {"default": CGDConfig, "paper": CGDConfig.paper}
# Keys that only the reference's own files have: these mean its numbers, unless a preset is named.
REFERENCE_ONLY = frozenset({"alpha", "beta", "sigma1", "sigma2"})
# What BackdoorBench's files say about the attack; nothing of it is used, or known in earnest.
ATTACK_KEYS = frozenset({"attack", "poison_rate", "target_type", "target_label", "trigger_type"})
# Switched on or off by what CGDConfig calls otherwise; see CGDConfig.from_dict.
OPTIONS = {"lr_scheduler": "lr_schedule", "amp": "mixed_precision"}


def config_from_settings(settings: Mapping[str, Any]) -> CGDConfig:
    """A configuration from a defence's settings, those that are None left out.

    Args:
        settings: ``preset`` (``"default"``: the best that we measured; ``"paper"``: the
            reference code's numbers, also without it where alpha, beta or sigmas are set) and
            changes to it, under the reference's keys (alpha, beta, sigma1, lr, ...) or under our
            names. Keys of the host, such as ``device``, are left to it.

    Raises:
        ValueError: for unknown settings or values, and for those of the reference that it reads
            and ignores and that can't be honoured.
    """
    given = {name: _number(value) for name, value in settings.items() if value is not None}
    preset = given.pop("preset", "paper" if REFERENCE_ONLY & set(given) else "default")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    if given.pop("prefetch", False):
        raise ValueError("prefetch belongs to BackdoorBench's own loader: set it to False")
    changes = {
        REFERENCE_KEYS.get(name, name): value
        for name, value in given.items()
        if name not in REFERENCE_HOST_KEYS | ATTACK_KEYS
    }
    changes |= _options(options)
    known = {field.name for field in dataclasses.fields(CGDConfig)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; the reference's are {sorted(REFERENCE_KEYS)}, ours "
            f"{sorted(known)}"
        )
    if isinstance(changes.get("prompts"), list):
        changes["prompts"] = tuple(changes["prompts"])
    base = PRESETS[preset]()
    if "sigma_clean" in changes and base.sigma_slow is not None:
        # The slow rule's threshold isn't among the reference's settings: it gives way.
        changes.setdefault("sigma_slow", max(base.sigma_slow, changes["sigma_clean"]))
    return base.replace(**changes)


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule and precision that the reference's switches stand for, or a refusal."""
    if not options:
        return {}
    translated = CGDConfig.from_dict(options)
    return {OPTIONS[name]: getattr(translated, OPTIONS[name]) for name in options}


def _number(value: Any) -> Any:
    """A number like 5e-4, which YAML 1.1 takes for a text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value
