"""Backdoor attacks that poison a data set on purpose, to test the defence on the user's data."""

from __future__ import annotations

from cgd_wrap.attacks.badnets import BadNets
from cgd_wrap.attacks.blended import Blended
from cgd_wrap.attacks.bpp import BppAttack
from cgd_wrap.attacks.catalogue import ATTACKS, attack_of
from cgd_wrap.attacks.ctrl import CTRL
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.flip_labels import FLIP
from cgd_wrap.attacks.input_aware import InputAware
from cgd_wrap.attacks.label_consistent import LabelConsistent
from cgd_wrap.attacks.label_flip import LabelFlip
from cgd_wrap.attacks.low_frequency import LowFrequency
from cgd_wrap.attacks.poisoning import Attack, PoisonedDataset, TriggeredDataset
from cgd_wrap.attacks.sig import SIG
from cgd_wrap.attacks.trojannn import TrojanNN
from cgd_wrap.attacks.typographic import Typographic
from cgd_wrap.attacks.wanet import WaNet

__all__ = [
    "ATTACKS",
    "CTRL",
    "FLIP",
    "SIG",
    "Attack",
    "BadNets",
    "Blended",
    "BppAttack",
    "FittedAttack",
    "InputAware",
    "LabelConsistent",
    "LabelFlip",
    "LowFrequency",
    "PoisonedDataset",
    "TriggeredDataset",
    "TrojanNN",
    "Typographic",
    "WaNet",
    "attack_of",
]
