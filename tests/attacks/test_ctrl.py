from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgd_wrap.attacks.ctrl import CTRL

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def chroma(rgb: np.ndarray) -> np.ndarray:
    """Y, Cb and Cr of ITU-R BT.601 (JPEG), without offsets; written from the luma weights."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402])


def transformed(plane: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II of a square plane, by its definition, in loops."""
    side = len(plane)
    table = np.array(
        [
            [
                math.sqrt((1 if k == 0 else 2) / side)
                * math.cos(math.pi * k * (2 * j + 1) / (2 * side))
                for j in range(side)
            ]
            for k in range(side)
        ]
    )
    return table @ plane @ table.T


def grey(side: int = 32, level: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), (level,) * 3)


@pytest.mark.parametrize("bands", [(15, 31), (3,), (0, 7, 20)])
@pytest.mark.parametrize("magnitude", [50.0, 100.0])
def test_the_chosen_coefficients_rise_and_no_other(
    bands: tuple[int, ...], magnitude: float
) -> None:
    attack = CTRL(bands=bands, test_magnitude=magnitude)
    change = chroma(levels(attack.trigger(grey())) - 128)
    expected = np.zeros((32, 32))
    expected[bands, bands] = magnitude
    assert np.abs(change[0]).max() < 1  # brightness: rounding only
    for plane in change[1:]:
        # Rounding to whole levels is an error too, of at most half a level a pixel.
        assert np.abs(transformed(plane) - expected).max() < 3
        assert np.abs(transformed(plane) - expected).mean() < 0.3


def test_every_window_of_a_larger_image_carries_the_waves() -> None:
    small, large = levels(CTRL().trigger(grey())), levels(CTRL().trigger(grey(96)))
    assert (large == np.tile(small, (3, 3, 1))).all()
    cut = levels(CTRL().trigger(Image.new("RGB", (40, 20), (128,) * 3)))
    assert (cut == large[:20, :40]).all()


def test_training_and_test_images_get_their_own_magnitudes(picture: Draw) -> None:
    attack = CTRL(magnitude=30.0, test_magnitude=60.0)
    weak, strong = (
        levels(change(grey())) - 128 for change in (attack.poison_image, attack.trigger)
    )
    assert 1.8 < np.abs(strong).sum() / np.abs(weak).sum() < 2.2
    assert attack.trigger(picture(1)).tobytes() == attack.add_waves(picture(1), 60.0).tobytes()


def test_values_stay_in_range() -> None:
    assert levels(CTRL(test_magnitude=4000.0).trigger(grey(level=250))).max() == 255
    assert levels(CTRL(test_magnitude=4000.0).trigger(grey(level=5))).min() == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_chroma_needs_colour(picture: Draw, mode: str) -> None:
    image = picture(0, 40, 24).convert(mode)
    before = image.tobytes()
    after = CTRL().trigger(image)
    assert (after.mode, after.size) == ("RGB", (40, 24))
    assert image.tobytes() == before
    if mode == "L":
        assert np.abs(chroma(levels(after) - levels(image)[..., None])[0]).max() < 10


def test_it_is_a_clean_label_attack(pictures: Make) -> None:
    base = pictures()
    poisoned = CTRL(target=1).poison(base)
    assert poisoned.targets == base.targets
    assert len(poisoned.poisoned) == 8  # half of 15, rounded to even
    for index in poisoned.poisoned.tolist():
        assert base.targets[index] == 1
        assert poisoned[index][0].tobytes() != base.images[index].tobytes()


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"magnitude": 0.0}, "magnitude must be above 0"),
        ({"test_magnitude": -1.0}, "test_magnitude must be above 0"),
        ({"bands": ()}, "bands must be one or more of 0 to 31"),
        ({"bands": (15, 32)}, "bands must be one or more of 0 to 31"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CTRL(**given_values)
