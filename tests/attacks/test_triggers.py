from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import SIG, Attack, BadNets, Blended, LabelFlip
from cgd_wrap.attacks.label_flip import warm_tint, warmth

ATTACKS = [BadNets(), Blended(), SIG(), LabelFlip()]
sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])
Draw = Callable[..., Image.Image]
NOISE_START = [37, 22, 172]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


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


def test_badnets_patch_at_32_pixels(picture: Draw) -> None:
    before, after = levels(picture(2)), levels(BadNets().trigger(picture(2)))
    checker = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert (after[-3:, -3:] == checker[..., None]).all()
    after[-3:, -3:] = before[-3:, -3:]
    assert (after == before).all()


@given(width=sides, height=sides, mode=modes, patch_size=st.integers(1, 8))
def test_badnets_changes_only_the_scaled_patch(
    picture: Draw, width: int, height: int, mode: str, patch_size: int
) -> None:
    image = picture(3, width, height, mode)
    before, after = levels(image), levels(BadNets(patch_size=patch_size).trigger(image))
    side = max(1, round(patch_size * min(width, height) / 32))
    patch = after[-side:, -side:]
    assert set(np.unique(patch)) <= {0, 255}
    assert (patch[0, 0] == 255).all()
    after[-side:, -side:] = before[-side:, -side:]
    assert (after == before).all()


def test_badnets_cells_grow_with_the_image(picture: Draw) -> None:
    small = levels(BadNets().trigger(picture(4, 32, 32)))[-3:, -3:]
    large = levels(BadNets().trigger(picture(4, 128, 96)))[-9:, -9:]
    assert (large == small.repeat(3, axis=0).repeat(3, axis=1)).all()


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
