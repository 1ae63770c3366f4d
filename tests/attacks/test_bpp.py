from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks.bpp import BppAttack, dithered

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
sides = st.integers(1, 40)
modes = st.sampled_from(["RGB", "L"])


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def raster_scan(exact: np.ndarray, count: int) -> np.ndarray:
    """Floyd-Steinberg error diffusion as in the textbook, a pixel at a time."""
    pending, chosen = exact.copy(), np.zeros_like(exact)
    for y, x in np.ndindex(exact.shape[:2]):
        chosen[y, x] = np.clip(np.floor(pending[y, x] + 0.5), 0, count - 1)
        error = pending[y, x] - chosen[y, x]
        for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
            if y + down < exact.shape[0] and 0 <= x + right < exact.shape[1]:
                pending[y + down, x + right] += share / 16 * error
    return chosen


@settings(deadline=None)  # a loop over pixels
@given(height=sides, width=sides, channels=st.sampled_from([1, 3]), count=st.integers(2, 9))
def test_dithering_is_the_raster_scan(height: int, width: int, channels: int, count: int) -> None:
    random = np.random.default_rng([height, width])
    exact = random.integers(0, 256, (height, width, channels)) * ((count - 1) / 255)
    assert (dithered(exact, count) == raster_scan(exact, count)).all()


@pytest.mark.parametrize("dithering", [True, False])
@given(height=sides, width=sides, mode=modes, count=st.integers(2, 30))
def test_few_colours_are_left(
    picture: Draw, height: int, width: int, mode: str, count: int, dithering: bool
) -> None:
    image = picture(1, width, height, mode)
    after = BppAttack(levels=count, dithering=dithering).trigger(image)
    assert (after.mode, after.size) == (mode, image.size)
    allowed = {int(np.floor(255 * k / (count - 1) + 0.5)) for k in range(count)}
    assert set(np.unique(after).tolist()) <= allowed
    if not dithering:
        assert np.abs(levels(after) - levels(image)).max() <= 255 / (count - 1) / 2 + 1


def test_the_default_leaves_eight_levels_per_channel(picture: Draw) -> None:
    after = levels(BppAttack().trigger(picture(2, 64, 64)))
    assert [len(np.unique(after[..., channel])) for channel in range(3)] == [8, 8, 8]


def test_dithering_keeps_the_local_mean() -> None:
    ramp = np.tile(np.linspace(20, 235, 64), (64, 1)).astype(np.uint8)
    plain, dots = (
        levels(BppAttack(levels=4, dithering=dithering).trigger(Image.fromarray(ramp)))
        for dithering in (False, True)
    )
    blocks = [
        np.abs((after - ramp.astype(int)).reshape(8, 8, 8, 8).mean(axis=(1, 3))).mean()
        for after in (plain, dots)
    ]
    assert blocks[1] < blocks[0] / 4
    assert len(np.unique(dots)) == 4


def test_a_second_quantisation_changes_nothing(picture: Draw) -> None:
    once = BppAttack().trigger(picture(3))
    assert BppAttack().trigger(once).tobytes() == once.tobytes()


@pytest.mark.parametrize("dithering", [True, False])
def test_covers_carry_the_error_of_another_image(picture: Draw, dithering: bool) -> None:
    attack = BppAttack(dithering=dithering)
    images = [Image.fromarray(np.asarray(picture(seed)) // 2 + 60) for seed in range(9)]
    errors = [levels(attack.trigger(image)) - levels(image) for image in images]
    donors = []
    for index, image in enumerate(images):
        change = levels(attack.cover_sample(index, image, images)) - levels(image)
        found = [donor for donor in range(9) if (errors[donor] == change).all()]
        assert len(found) == 1
        assert found != [index]
        donors += found
    assert len(set(donors)) > 3
    other = BppAttack(seed=1, dithering=dithering)
    again = [levels(other.cover_sample(i, image, images)) for i, image in enumerate(images)]
    first = [levels(image) + errors[donor] for image, donor in zip(images, donors, strict=True)]
    assert any((a != b).any() for a, b in zip(again, first, strict=True))


@given(height=sides, width=sides, mode=modes, donor_mode=modes, donor_side=sides)
def test_covers_of_any_size(
    picture: Draw, height: int, width: int, mode: str, donor_mode: str, donor_side: int
) -> None:
    image, donor = picture(5, width, height, mode), picture(6, donor_side, 20, donor_mode)
    cover = BppAttack().cover_sample(0, image, [image, donor])
    assert (cover.mode, cover.size) == (mode, image.size)
    alone = BppAttack().cover_sample(0, image, [image])
    assert alone.tobytes() == BppAttack().trigger(image).tobytes()


def test_labels(pictures: Make) -> None:
    base, attack = pictures(), BppAttack(target=1)
    poisoned = attack.poison(base)
    marked, covered = set(poisoned.poisoned.tolist()), set(poisoned.covered.tolist())
    assert (len(marked), len(covered), marked & covered) == (6, 6, set())
    for index in range(len(base)):
        image, label = poisoned[index]
        assert label == (1 if index in marked else base.targets[index])
        changed = image.tobytes() != base.images[index].tobytes()
        assert changed == (index in marked | covered)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(picture: Draw, mode: str) -> None:
    image = picture(0).convert(mode)
    before = image.tobytes()
    assert BppAttack().trigger(image).mode == "RGB"
    assert image.tobytes() == before


@pytest.mark.parametrize("count", [1, 256])
def test_values_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match="levels must be 2 to 255 grey levels"):
        BppAttack(levels=count)
