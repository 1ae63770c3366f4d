"""All attacks by name, for commands and tables."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from cgd_wrap.attacks.badnets import BadNets
from cgd_wrap.attacks.blended import Blended
from cgd_wrap.attacks.bpp import BppAttack
from cgd_wrap.attacks.ctrl import CTRL
from cgd_wrap.attacks.flip_labels import FLIP
from cgd_wrap.attacks.input_aware import InputAware
from cgd_wrap.attacks.label_consistent import LabelConsistent
from cgd_wrap.attacks.label_flip import LabelFlip
from cgd_wrap.attacks.low_frequency import LowFrequency
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.sig import SIG
from cgd_wrap.attacks.trojannn import TrojanNN
from cgd_wrap.attacks.typographic import Typographic
from cgd_wrap.attacks.wanet import WaNet

ATTACKS: dict[str, Callable[..., Attack]] = {
    # dirty-label
    "badnets": BadNets,
    "blended": Blended,
    "trojannn": TrojanNN,
    "input_aware": InputAware,
    "wanet": WaNet,
    "bpp": BppAttack,
    "low_frequency": LowFrequency,
    "typographic": Typographic,
    # clean-label
    "sig": SIG,
    "label_consistent": LabelConsistent,
    "ctrl": CTRL,
    # clean-image
    "label_flip": LabelFlip,
    "flip_labels": FLIP,
}
_OTHER_NAMES = {"flip": "label_flip"}  # a name that the demo uses


def attack_of(name: str, **parameters: Any) -> Attack:
    """Make an attack by its name in :data:`ATTACKS`.

    Args:
        name: a key of :data:`ATTACKS`, or ``flip`` for ``label_flip``.
        parameters: arguments of the attack's class; the others have the class' defaults.

    Raises:
        ValueError: no attack has this name, the attack has no such parameter, or a value is out of
            range.
    """
    make = ATTACKS.get(_OTHER_NAMES.get(name, name))
    if make is None:
        close = difflib.get_close_matches(name, ATTACKS, n=1)
        raise ValueError(
            f"there is no attack {name!r}{f', perhaps {close[0]!r}' if close else ''}; known are "
            f"{', '.join(sorted(ATTACKS))}."
        )
    known = [part.name for part in fields(make) if part.init]  # type: ignore[arg-type]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no parameter {', '.join(unknown)}; it takes {', '.join(known)}."
        )
    return make(**parameters)
