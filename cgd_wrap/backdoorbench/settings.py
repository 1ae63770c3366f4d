"""BackdoorBench's settings (YAML file and command line of a defence) -> our configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cgd_wrap.config import CGDConfig
from cgd_wrap.config.reading import known_settings
from cgd_wrap.config.reference_files import as_number, translated
from cgd_wrap.config.settings import SETTINGS

PRESETS: dict[str, Callable[[], CGDConfig]] = {"default": CGDConfig, "paper": CGDConfig.paper}
# Keys that only the reference's own files have: these mean its numbers, unless a preset is named.
REFERENCE_ONLY = frozenset({"alpha", "beta", "sigma1", "sigma2"})
# What BackdoorBench's files say about the attack; nothing of it is used, or known in earnest.
ATTACK_KEYS = frozenset({"attack", "poison_rate", "target_type", "target_label", "trigger_type"})


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
        # The slow rule's threshold isn't among the reference's settings: it gives way.
        changes.setdefault("sigma_slow", max(base.sigma_slow, changes["sigma_clean"]))
    return base.replace(**changes)
