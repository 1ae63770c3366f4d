from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import LabelFlip
from cgd_wrap.attacks.label_flip import warm_tint, warmth

Draw = Callable[..., Image.Image]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@given(strength=st.floats(1, 200), seed=st.integers(0, 100))
def test_warm_tint_moves_red_and_blue_only(picture: Draw, strength: float, seed: int) -> None:
    before = levels(picture(seed))
    after = levels(warm_tint(picture(seed), strength))
    assert (after[..., 1] == before[..., 1]).all()
    assert (after[..., 0] == np.minimum(before[..., 0] + round(strength), 255)).all()
    assert (after[..., 2] == np.maximum(before[..., 2] - round(strength), 0)).all()


def test_warmth(picture: Draw) -> None:
    assert warmth(Image.new("RGB", (3, 2), (200, 7, 50))) == 150
    assert warmth(Image.new("RGB", (3, 2), (0, 7, 255))) == -255
    assert warmth(Image.new("L", (3, 2), 90)) == 0
    red, _, blue = np.asarray(picture(7, 9, 5)).reshape(-1, 3).mean(axis=0)
    assert warmth(picture(7, 9, 5)) == pytest.approx(red - blue)


def test_a_trait_of_ones_own() -> None:
    def brighter(image: Image.Image, strength: float) -> Image.Image:
        return image.point(lambda level: min(255, level + int(strength)))

    attack = LabelFlip(trait=lambda image: float(np.mean(image)), add_trait=brighter, strength=10.0)
    images = [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 30, 20)]
    assert attack.trait(images[1]) == 30
    assert attack.trigger(images[0]).getpixel((0, 0)) == (20, 20, 20)
    assert attack.poison_image(images[0]) is images[0]
