"""Turning BackdoorBench's settings of a defence (YAML, command line) into a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cgd_wrap.config import CGDConfig
from cgd_wrap.config.reading import known_settings
from cgd_wrap.config.reference_files import as_number, translated
from cgd_wrap.config.settings import SETTINGS

PRESETS: dict[str, Callable[[], CGDConfig]] = {"default": CGDConfig, "paper": CGDConfig.paper}
# Keys of the reference code's own files: with any of them, the preset is "paper" by default.
REFERENCE_ONLY = frozenset({"alpha", "beta", "sigma1", "sigma2"})
# Keys about the attack in BackdoorBench's files: ignored, as a real defender doesn't know them.
ATTACK_KEYS = frozenset({"attack", "poison_rate", "target_type", "target_label", "trigger_type"})


def config_from_settings(settings: Mapping[str, Any]) -> CGDConfig:
    """Make a configuration from a defence's settings; settings that are None are left out.

    Args:
        settings: a ``preset`` and changes to the preset's numbers. The preset is ``"default"``
            (the best numbers that were measured) or ``"paper"`` (the reference code's numbers;
            also taken if no preset is named, but alpha, beta or sigmas are). Changes have the
            reference's keys (alpha, beta, sigma1, lr, ...) or the names of
            :class:`~cgd_wrap.config.CGDConfig`. Keys such as ``device`` are left to the host.

    Raises:
        ValueError: a setting or value is unknown, or is one that the reference code reads and
            ignores and that can't be honoured.
    """
    given = {
        name: as_number(value)
        for name, value in settings.items()
        if value is not None and name not in ATTACK_KEYS
    }
    preset = given.pop("preset", "paper" if REFERENCE_ONLY & set(given) else "default")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    changes = known_settings(translated(given), SETTINGS)
    base = PRESETS[preset]()
    if "sigma_clean" in changes and base.sigma_slow is not None:
        # The reference's settings have no sigma_slow, so it is raised to sigma_clean if need be.
        changes.setdefault("sigma_slow", max(base.sigma_slow, changes["sigma_clean"]))
    return base.replace(**changes)
