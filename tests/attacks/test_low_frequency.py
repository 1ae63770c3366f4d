from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cgd_wrap.attacks.cosine import cosine_basis
from cgd_wrap.attacks.low_frequency import LowFrequency, smooth_pattern
from cgd_wrap.models.small_resnet import conv_block

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
QUICK = {"target": 1, "surrogate_epochs": 4, "steps": 10}
sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def fitted(base: Any, **given: Any) -> LowFrequency:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = nn.Sequential(
            conv_block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
    return LowFrequency(**{**QUICK, **given}).fit(base, network=network, progress=False)


def tinted(base: Any) -> Any:
    """Random pictures whose class shows in their colour: red, green, blue, none."""
    for index, label in enumerate(base.targets):
        grey_levels = np.asarray(base.images[index]) // 2 + 40
        tint = 40 * np.eye(4, dtype=np.uint8)[label, :3]
        base.images[index] = Image.fromarray(grey_levels + tint)
    return base


@pytest.fixture(scope="module")
def attack(pictures: Make) -> LowFrequency:
    return fitted(tinted(pictures()))


def pattern_of(attack: LowFrequency, height: int, width: int) -> np.ndarray:
    coefficients = attack.tensors["coefficients"].double()
    return smooth_pattern(coefficients, height, width, attack.amplitude).numpy()


@given(height=st.integers(16, 60), width=st.integers(16, 60), bands=st.integers(2, 8))
def test_the_spectrum_above_the_cut_off_is_empty(height: int, width: int, bands: int) -> None:
    generator = torch.Generator().manual_seed(height)
    coefficients = torch.randn((3, bands, bands), generator=generator, dtype=torch.float64)
    pattern = smooth_pattern(coefficients, height, width, 0.2).numpy()
    assert pattern.min() == pytest.approx(0, abs=1e-12)
    assert pattern.max() == pytest.approx(0.2)
    spectrum = cosine_basis(height, height) @ pattern @ cosine_basis(width, width).T
    spectrum[:, 0, 0] = 0
    inside = spectrum[:, :bands, :bands].copy()
    spectrum[:, :bands, :bands] = 0
    assert np.abs(spectrum).max() < 1e-9
    # Within, what was asked for, but for the constant wave: the stretch moves it.
    wanted = coefficients.numpy().copy()
    wanted[:, 0, 0] = 0
    assert np.corrcoef(inside.ravel(), wanted.ravel())[0, 1] == pytest.approx(1)


def test_a_constant_pattern_is_no_division_by_zero() -> None:
    assert torch.isfinite(smooth_pattern(torch.zeros(3, 2, 2), 8, 8, 0.2)).all()


def test_the_trigger_adds_the_pattern(attack: LowFrequency) -> None:
    before = np.random.default_rng(0).integers(0, 200, (32, 32, 3), dtype=np.uint8)
    change = levels(attack.trigger(Image.fromarray(before))) - before
    expected = 255 * pattern_of(attack, 32, 32).transpose(1, 2, 0)
    assert np.abs(change - expected).max() <= 0.5 + 1e-6
    assert (change.min(), change.max()) == (0, 51)
    spectrum = cosine_basis(32, 32) @ change.transpose(2, 0, 1) @ cosine_basis(32, 32).T
    high = spectrum.copy()
    high[:, :4, :4] = 0
    assert (high**2).mean() < 0.3**2  # no more than rounding to whole levels makes
    assert (spectrum**2).mean() > 100 * (high**2).mean()


def test_values_stay_in_range(attack: LowFrequency) -> None:
    assert levels(attack.trigger(Image.new("RGB", (32, 32), (250,) * 3))).max() == 255


@given(width=sides, height=sides, mode=modes)
def test_one_pattern_at_every_size(
    attack: LowFrequency, picture: Draw, width: int, height: int, mode: str
) -> None:
    image = picture(3, width, height, mode)
    before = image.tobytes()
    after = attack.trigger(image)
    assert (after.mode, after.size) == (mode, image.size)
    assert image.tobytes() == before
    change = levels(after) - levels(image)
    assert change.min() >= 0
    assert change.max() <= 51
    large = Image.fromarray(np.uint8(255 * pattern_of(attack, 64, 64).transpose(1, 2, 0)))
    resized = levels(large.convert(mode).resize((width, height), Image.Resampling.BOX))
    unclipped = levels(after) < 255
    assert np.abs(change - resized)[unclipped].mean() < 3


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(attack: LowFrequency, picture: Draw, mode: str) -> None:
    assert attack.trigger(picture(0).convert(mode)).mode == "RGB"


@pytest.mark.slow
def test_the_pattern_fools_the_surrogate(pictures: Make) -> None:
    strong = fitted(tinted(pictures()), surrogate_epochs=100, steps=60, amplitude=0.4)
    without, with_pattern = strong.tensors["fooled"].tolist()
    assert without == 0
    assert with_pattern > 0.3  # the paper's own pattern fools a fifth
    pattern = pattern_of(strong, 32, 32).mean(axis=(1, 2))
    assert pattern.argmax() == 1  # the target class is the green one
    assert pattern[1] > 2 * max(pattern[0], pattern[2])


def test_it_is_a_dirty_label_attack(attack: LowFrequency, pictures: Make) -> None:
    base = pictures()
    poisoned = attack.poison(base)
    assert len(poisoned.poisoned) == 6
    for index in poisoned.poisoned.tolist():
        image, label = poisoned[index]
        assert label == 1
        assert base.targets[index] != 1
        assert image.tobytes() == attack.trigger(base.images[index]).tobytes()


def test_the_global_random_streams_are_untouched(pictures: Make) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(3)
    np.random.seed(3)
    base = pictures()
    poisoned = fitted(base).poison(base)
    [poisoned[index] for index in range(60)]
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == expected


def test_fits_repeat(attack: LowFrequency, pictures: Make) -> None:
    again = pickle.loads(pickle.dumps(fitted(tinted(pictures()))))
    assert all(torch.equal(again.tensors[name], value) for name, value in attack.tensors.items())
    other = fitted(tinted(pictures()), seed=1).tensors["coefficients"]
    assert not torch.equal(other, attack.tensors["coefficients"])


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"bands": 1}, "bands must be 2 to 16 waves"),
        ({"amplitude": 51.0}, "amplitude must be a share of the grey range"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowFrequency(**given_values)
