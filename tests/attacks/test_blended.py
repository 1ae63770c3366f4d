from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import Blended

sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])
Draw = Callable[..., Image.Image]
NOISE_START = [37, 22, 172]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@given(alpha=st.floats(0.01, 1), seed=st.integers(0, 5), width=sides, height=sides, mode=modes)
def test_blended_follows_the_formula(
    picture: Draw, alpha: float, seed: int, width: int, height: int, mode: str
) -> None:
    attack, image = Blended(alpha=alpha, seed=seed), picture(5, width, height, mode)
    pattern = levels(attack.pattern_at(image.size).convert(mode))
    expected = (1 - alpha) * levels(image) + alpha * pattern
    assert np.abs(levels(attack.trigger(image)) - expected).max() <= 0.5 + 1e-9


def test_blended_noise_is_fixed_by_the_seed() -> None:
    noise = levels(Blended(seed=0).pattern_at((32, 32)))
    # Written down once: the same noise on every machine and under every release of numpy.
    assert noise[0, 0].tolist() == NOISE_START
    assert (levels(Blended(seed=0).pattern_at((32, 32))) == noise).all()
    assert (levels(Blended(seed=1).pattern_at((32, 32))) != noise).any()
    assert noise.min() == 0
    assert noise.max() == 255
    assert abs(noise.mean() - 127.5) < 5


def test_blended_noise_is_one_pattern_at_all_sizes() -> None:
    small, large = (levels(Blended().pattern_at((side, side))) for side in (32, 96))
    assert (large == small.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_blended_takes_any_pattern() -> None:
    pattern = Image.new("RGBA", (5, 7), (250, 100, 0, 10))
    out = levels(Blended(alpha=0.5, pattern=pattern).trigger(Image.new("RGB", (9, 9))))
    assert (out == [125, 50, 0]).all()
