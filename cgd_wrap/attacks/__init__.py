"""Attacks that poison a dataset on purpose, to drill the defence on one's own data."""

from __future__ import annotations

from cgd_wrap.attacks.badnets import BadNets
from cgd_wrap.attacks.blended import Blended
from cgd_wrap.attacks.label_flip import LabelFlip
from cgd_wrap.attacks.poisoning import Attack, PoisonedDataset, TriggeredDataset
from cgd_wrap.attacks.sig import SIG

__all__ = [
    "SIG",
    "Attack",
    "BadNets",
    "Blended",
    "LabelFlip",
    "PoisonedDataset",
    "TriggeredDataset",
]
