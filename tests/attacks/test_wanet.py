from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks.wanet import WaNet, read_at

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
sides = st.integers(1, 70)
modes = st.sampled_from(["RGB", "L"])
FIRST_SHIFT = [0.08110497463536494, -0.024012747012103004]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def ramp(side: int = 64, down: float = 0.0, right: float = 3.0) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    return np.rint(20 + down * y + right * x).astype(np.uint8)


@given(
    strength=st.floats(0.1, 4),
    seed=st.integers(0, 30),
    grid=st.integers(2, 8),
    width=sides,
    height=sides,
)
def test_the_warp_is_bounded_by_its_strength(
    strength: float, seed: int, grid: int, width: int, height: int
) -> None:
    attack = WaNet(strength=strength, seed=seed, grid_size=grid)
    shifts = attack.shifts(height, width)
    assert shifts.shape == (height, width, 2)
    unit = WaNet(strength=1.0, seed=seed, grid_size=grid).shifts(height, width)
    assert (shifts - strength * unit).abs().max() < 1e-9
    # Grid points are at most about twice their mean; bicubic weights add up to 1.8 in size.
    assert shifts.abs().max() < 4 * strength


def test_the_grid_has_the_papers_size() -> None:
    for seed in range(5):
        points = WaNet(seed=seed, strength=1.0).shifts(4, 4)  # the interpolation meets the points
        assert points.abs().mean() == pytest.approx(3 / 8)  # s / 2 (n - 1) / n at n = 4
        assert points.abs().max() < 1


@given(seed=st.integers(0, 20))
def test_the_warp_is_smooth(seed: int) -> None:
    shifts = WaNet(seed=seed).shifts(32, 32)
    assert shifts.abs().max() > 0.2
    assert max(shifts.diff(dim=axis).abs().max() for axis in (0, 1)) < 0.2


def test_pixels_are_read_where_the_shifts_say() -> None:
    shifts = WaNet(seed=3, strength=2.0).shifts(64, 64).numpy()
    inside = slice(3, -3), slice(3, -3)  # beyond, the border is met
    for down, right in ((0.0, 3.0), (3.0, 0.0)):
        image = ramp(down=down, right=right)
        moved = levels(WaNet(seed=3, strength=2.0).trigger(Image.fromarray(image)))
        expected = image + right * shifts[..., 0] + down * shifts[..., 1]
        assert np.abs(moved - expected)[inside].max() <= 0.5 + 1e-6
        assert np.abs(moved - image).max() >= 2


def test_bilinear_reading() -> None:
    image = np.array([[0, 10], [20, 60]], dtype=np.uint8)
    shifts = torch.zeros(2, 2, 2, dtype=torch.float64)
    assert (read_at(image, shifts) == image).all()
    shifts[0, 0] = torch.tensor([0.5, 0.25])  # a half to the right, a quarter down
    assert read_at(image, shifts)[0, 0] == pytest.approx(0.75 * 5 + 0.25 * 40)
    shifts[0, 0] = torch.tensor([-9.0, 9.0])
    assert read_at(image, shifts)[0, 0] == pytest.approx(20)
    shifts = torch.ones(3, 1, 2, dtype=torch.float64)
    assert (read_at(np.array([[1], [2], [3]], dtype=np.uint8), shifts) == [[2], [3], [3]]).all()


def test_the_seed_decides_on_the_warp(picture: Draw) -> None:
    first, again, other = (WaNet(seed=seed).trigger(picture(1)) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    # Written down once: the same warp on every machine and under every release of numpy.
    assert WaNet().shifts(32, 32)[5, 5].tolist() == pytest.approx(FIRST_SHIFT, abs=1e-9)


def test_covers_are_the_warp_with_noise(picture: Draw) -> None:
    attack, image = WaNet(), picture(2)
    warped = levels(attack.trigger(image))
    covers = [levels(attack.cover_sample(index, image, [])) for index in range(4)]
    assert len({cover.tobytes() for cover in covers}) == 4
    for cover in covers:
        assert (cover != warped).mean() > 0.5
    assert (levels(attack.cover_sample(1, image, [])) == covers[1]).all()
    # The noise has no direction: on a ramp it averages out and the warp remains.
    slope = ramp(32, right=6.0)
    drawn = [levels(attack.cover_sample(index, Image.fromarray(slope), [])) for index in range(200)]
    expected = slope + 6 * attack.shifts(32, 32)[..., 0].numpy()
    assert np.abs(np.mean(drawn, axis=0) - expected)[:, 2:-2].mean() < 0.2
    # Uniform in half a pixel each way: 6 levels a pixel times 1 / sqrt(12).
    spread = np.std(drawn, axis=0)[:, 2:-2].mean()
    assert spread == pytest.approx(6 / np.sqrt(12), rel=0.1)


@given(width=sides, height=sides, mode=modes)
def test_any_size_and_mode(picture: Draw, width: int, height: int, mode: str) -> None:
    image = picture(3, width, height, mode)
    before = image.tobytes()
    for after in (WaNet().trigger(image), WaNet().cover_sample(7, image, [])):
        assert (after.mode, after.size) == (mode, image.size)
        assert levels(after).min() >= levels(image).min()
        assert levels(after).max() <= levels(image).max()
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(picture: Draw, mode: str) -> None:
    assert WaNet().trigger(picture(0).convert(mode)).mode == "RGB"


def test_labels(pictures: Make) -> None:
    base, attack = pictures(), WaNet(target=1)
    poisoned = attack.poison(base)
    marked, covered = set(poisoned.poisoned.tolist()), set(poisoned.covered.tolist())
    assert (len(marked), len(covered), marked & covered) == (6, 12, set())
    for index in range(len(base)):
        image, label = poisoned[index]
        assert label == (1 if index in marked else base.targets[index])
        changed = image.tobytes() != base.images[index].tobytes()
        assert changed == (index in marked | covered)


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"grid_size": 1}, "grid_size must be 2 points or more"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"cover_ratio": -0.1}, "cover_ratio must be 0 or more"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaNet(**given_values)
