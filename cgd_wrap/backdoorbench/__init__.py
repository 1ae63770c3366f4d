"""Defending BackdoorBench's attack results, and writing defence results that BackdoorBench reads.

::

    result = read_attack_result("record/badnet")  # nothing in the file is executed
    defence = defend_folder("record/badnet")      # writes record/badnet/defense/cgd

``integrations/backdoorbench`` holds scripts and settings to copy into BackdoorBench's tree.
"""

from __future__ import annotations

from cgd_wrap.backdoorbench.clean_data import CleanImages, clean_images
from cgd_wrap.backdoorbench.defending import Defence, defend_folder, in_words
from cgd_wrap.backdoorbench.errors import AttackResultError, UnsafeFileError
from cgd_wrap.backdoorbench.networks import build_network
from cgd_wrap.backdoorbench.result import AttackResult, read_attack_result
from cgd_wrap.backdoorbench.samples import (
    BackdoorSamples,
    image_transform,
    poisoned_samples,
    triggered_samples,
)
from cgd_wrap.backdoorbench.settings import config_from_settings
from cgd_wrap.backdoorbench.split_clean import (
    CleanSplit,
    read_clean_indices,
    splitting_loader,
    use_clean_split,
)
from cgd_wrap.backdoorbench.writing import write_defense_result

__all__ = [
    "AttackResult",
    "AttackResultError",
    "BackdoorSamples",
    "CleanImages",
    "CleanSplit",
    "Defence",
    "UnsafeFileError",
    "build_network",
    "clean_images",
    "config_from_settings",
    "defend_folder",
    "image_transform",
    "in_words",
    "poisoned_samples",
    "read_attack_result",
    "read_clean_indices",
    "splitting_loader",
    "triggered_samples",
    "use_clean_split",
    "write_defense_result",
]
