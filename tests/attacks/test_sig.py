from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import SIG

sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])
Draw = Callable[..., Image.Image]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@given(
    delta=st.floats(1 / 255, 1), frequency=st.floats(0.5, 12), width=sides, height=sides, mode=modes
)
def test_sig_follows_the_formula(
    picture: Draw, delta: float, frequency: float, width: int, height: int, mode: str
) -> None:
    image = picture(6, width, height, mode)
    after = levels(SIG(delta=delta, frequency=frequency).trigger(image))
    for column in range(width):
        wave = 255 * delta * math.sin(2 * math.pi * column * frequency / width)
        exact = np.clip(levels(image)[:, column] + wave, 0, 255)
        assert np.abs(after[:, column] - exact).max() <= 0.5 + 1e-5


def test_sig_default_amplitude_is_40_grey_levels() -> None:
    wave = SIG().wave(96)  # 16 columns a period: the crest falls on a column
    assert wave.max() == 40
    assert wave.min() == -40
    assert wave[:4].tolist() == [0, 15, 28, 37]
