"""The settings files of the authors' code, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The reference's YAML keys -> ours. Symbols as in the paper, names as in the authors' code.
REFERENCE_KEYS = {
    "alpha": "guidance_weight",
    "beta": "unlearning_weight",
    "sigma1": "sigma_clean",
    "sigma2": "sigma_triggered",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "sgd_momentum": "momentum",
    "random_seed": "seed",
}
# Keys of the reference's YAML files that say where and on what it runs: the host's business.
HOST_KEYS = frozenset(
    {
        "dataset",
        "dataset_path",
        "datasets_root_dir",
        "result_file",
        "result_base",
        "save_path",
        "checkpoint_save",
        "checkpoint_load",
        "log",
        "device",
        "gpu",
        "num_workers",
        "pin_memory",
        "non_blocking",
        "model",
        "index",
        "frequency_save",
        "client_optimizer",
        "num_classes",
        "input_height",
        "input_width",
        "input_channel",
        "img_size",
        "yaml_path",
    }
)
# Switches that the reference reads and then ignores.
OPTION_KEYS = frozenset({"lr_scheduler", "amp", "prefetch"})
KEYS = frozenset(REFERENCE_KEYS) | HOST_KEYS | OPTION_KEYS


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the reference's keys, drop the host's, and honour or refuse its options.

    Keys that aren't the reference's stay as they are.

    Raises:
        ValueError: for an option that we can't honour.
    """
    changes = {
        REFERENCE_KEYS.get(key, key): value
        for key, value in values.items()
        if key not in HOST_KEYS | OPTION_KEYS
    }
    return changes | _options(values)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "lr_scheduler" in values:
        schedules = {"CosineAnnealingLR": "cosine", "constant": "constant", None: "constant"}
        if values["lr_scheduler"] not in schedules:
            raise ValueError(
                f"lr_scheduler={values['lr_scheduler']!r} is not supported; use one of "
                f"{list(schedules)}, or train in a loop of your own with guard.protect"
            )
        options["lr_schedule"] = schedules[values["lr_scheduler"]]
    if "amp" in values:
        options["mixed_precision"] = "fp16" if values["amp"] else "no"
    if values.get("prefetch"):
        raise ValueError("prefetch is a setting of BackdoorBench's own loader; remove it")
    return options


def as_number(value: Any) -> Any:
    """A number like 5e-4 or 1.5e3, which YAML 1.1 takes for a text; other values as they are."""
    exponent = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if exponent else value
