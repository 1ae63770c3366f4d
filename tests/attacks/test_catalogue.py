from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import cgd_wrap.attacks
from cgd_wrap.attacks import ATTACKS, Attack, BadNets, FittedAttack, LabelFlip, attack_of

Make = Callable[..., Any]


def test_every_public_attack_is_in_the_catalogue() -> None:
    public = (getattr(cgd_wrap.attacks, name) for name in cgd_wrap.attacks.__all__)
    attacks = {part for part in public if isinstance(part, type) and issubclass(part, Attack)}
    assert attacks - {Attack, FittedAttack} == set(ATTACKS.values())


@pytest.mark.parametrize("name", list(ATTACKS))
def test_defaults_and_parameters(name: str, pictures: Make) -> None:
    attack = attack_of(name, target=2, rate=0.2, seed=5)
    assert (attack.target, attack.rate, attack.seed) == (2, 0.2, 5)
    assert type(attack) is ATTACKS[name]
    assert attack_of(name) == ATTACKS[name]()
    assert re.search(r"arXiv \d{4}\.\d{5}|NDSS 2018", type(attack).__doc__ or "")
    if not isinstance(attack, FittedAttack):
        poisoned = attack.poison(pictures())
        assert len(poisoned.poisoned) in (3, 12)  # of the target class' 15, or of all 60


UNFITTED = [name for name in ATTACKS if not isinstance(attack_of(name), FittedAttack)]


@pytest.mark.parametrize("name", UNFITTED)
def test_the_global_random_streams_are_untouched(name: str, pictures: Make) -> None:
    expected = []
    for attack in (None, attack_of(name)):
        torch.manual_seed(3)
        np.random.seed(3)
        if attack:
            poisoned, triggered = attack.poison(pictures()), attack.triggered(pictures())
            [*poisoned, triggered[0]]
        expected.append((torch.rand(2).tolist(), np.random.rand(2).tolist()))
    assert expected[0] == expected[1]


@pytest.mark.parametrize("name", UNFITTED)
def test_an_attack_is_a_value(name: str, pictures: Make) -> None:
    attack, twin = attack_of(name), pickle.loads(pickle.dumps(attack_of(name)))
    assert twin == attack
    assert hash(twin) == hash(attack)
    seen = (one.triggered(pictures())[0][0].tobytes() for one in (attack, twin))
    assert len(set(seen)) == 1


def test_parameters_of_its_own() -> None:
    assert attack_of("badnets", patch_size=5) == BadNets(patch_size=5)
    assert attack_of("flip", strength=30.0) == LabelFlip(strength=30.0)


def test_an_unknown_attack() -> None:
    with pytest.raises(
        ValueError, match=r"no attack 'badnet', perhaps 'badnets'; known are badnets, blended, bpp,"
    ):
        attack_of("badnet")


@pytest.mark.parametrize("name", ["patchsize", "_scores"])
def test_an_unknown_parameter(name: str) -> None:
    message = f"badnets has no parameter {name}; it takes target, rate, seed, patch_size."
    with pytest.raises(ValueError, match=re.escape(message)):
        attack_of("badnets", **{name: 3})


def test_a_value_out_of_range() -> None:
    with pytest.raises(ValueError, match="patch_size must be 1 to 32 pixels, got 0"):
        attack_of("badnets", patch_size=0)
