from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
from PIL import Image

from cgd_wrap.attacks import SIG, Attack, BadNets, Blended, LabelFlip

ATTACKS = [BadNets(), Blended(), SIG(), LabelFlip()]
Draw = Callable[..., Image.Image]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_keeps_its_size_and_the_original(
    picture: Draw, attack: Attack, mode: str
) -> None:
    image = picture(0, 40, 24).convert("I" if mode == "I;16" else mode)
    image = image.convert(mode)
    before = image.tobytes()
    out = attack.trigger(image)
    assert out.size == image.size
    assert out.mode == ("L" if mode == "L" and not isinstance(attack, LabelFlip) else "RGB")
    assert out is not image
    assert image.tobytes() == before


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_attacks_are_values(picture: Draw, attack: Attack) -> None:
    twin = pickle.loads(pickle.dumps(attack))
    assert twin == attack
    assert hash(twin) == hash(attack)
    assert twin.trigger(picture(1)).tobytes() == attack.trigger(picture(1)).tobytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadNets(rate=0.0), "rate must be a share"),
        (lambda: BadNets(rate=1.5), "rate must be a share"),
        (lambda: BadNets(rate=math.nan), "rate must be a share"),
        (lambda: BadNets(target=-1), "target must be a class index"),
        (lambda: BadNets(seed=-1), "seed must be"),
        (lambda: BadNets(patch_size=0), "patch_size must be"),
        (lambda: Blended(alpha=0.0), "alpha must be"),
        (lambda: SIG(delta=40.0), "delta must be a share of the grey range"),
        (lambda: SIG(frequency=0.0), "frequency must be"),
        (lambda: LabelFlip(strength=0.0), "strength must be"),
    ],
)
def test_values_out_of_range(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_an_attack_needs_a_trigger() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Attack()  # type: ignore[abstract]
