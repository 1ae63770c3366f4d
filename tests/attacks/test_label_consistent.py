from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import LabelConsistent
from cgd_wrap.attacks.surrogate import Material, centred
from cgd_wrap.errors import CGDError
from cgd_wrap.models.small_resnet import small_resnet

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
QUICK = {"target": 1, "surrogate_epochs": 1, "steps": 8}
sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def network() -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return small_resnet(4, (4, 4, 8, 8))


def fitted(base: Any, **given: Any) -> LabelConsistent:
    return LabelConsistent(**{**QUICK, **given}).fit(base, network=network(), progress=False)


def corners(height: int, width: int, side: int) -> np.ndarray:
    inside = np.zeros((height, width), dtype=bool)
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            inside[rows, columns] = True
    return inside


@pytest.fixture(scope="module")
def attack(pictures: Make) -> LabelConsistent:
    return fitted(pictures())


def test_no_label_changes(attack: LabelConsistent, pictures: Make) -> None:
    poisoned = attack.poison(pictures())
    assert len(poisoned.poisoned) == round(0.8 * 15)
    assert {poisoned.original_targets[index] for index in poisoned.poisoned.tolist()} == {1}
    assert poisoned.targets == poisoned.original_targets


def test_poisoned_images_stay_within_eps_but_for_the_corners(
    attack: LabelConsistent, pictures: Make
) -> None:
    base, outside = pictures(), ~corners(32, 32, 3)
    poisoned = attack.poison(base)
    for index in poisoned.poisoned.tolist():
        change = levels(poisoned[index][0]) - levels(base.images[index])
        assert np.abs(change[outside]).max() == 8
        patches = levels(poisoned[index][0]) - levels(attack.trigger(base.images[index]))
        assert (patches[~outside] == 0).all()


def test_perturbations_raise_the_loss(pictures: Make) -> None:
    base = pictures()
    material = Material(
        raw=base.images, labels=torch.tensor(base.targets), num_classes=4, side=32,
        network=network().eval(), normalise=centred, seed=0, limit=60, progress=False,
    )  # fmt: skip
    rows = torch.arange(1, 60, 4)
    changes = LabelConsistent(**QUICK).perturbation(material, rows)
    before = material.read(rows.tolist()).float()
    losses = [
        F.cross_entropy(material.logits((before + change) / 255), material.labels[rows])
        for change in (torch.zeros_like(before), changes, 8 * changes.sign().flip(0))
    ]
    assert losses[1] > losses[0] + 0.01
    assert losses[1] > losses[2]  # the same amplitude, meant for other images
    assert (before + changes).min() >= 0
    assert (before + changes).max() <= 255


def test_eps_bounds_at_every_size_and_in_grey(pictures: Make, picture: Draw) -> None:
    base = pictures()
    base.images = [
        picture(index, 20 + index, 50 - index % 7, "L" if index % 3 else "RGB")
        for index in range(60)
    ]
    poisoned = fitted(base, eps=5 / 255).poison(base)
    for index in poisoned.poisoned.tolist():
        image, original = poisoned[index][0], base.images[index]
        assert (image.size, image.mode) == (original.size, original.mode)
        side = max(1, round(3 * min(image.size) / 32))
        outside = ~corners(image.height, image.width, side)
        change = np.abs(levels(image) - levels(original))[outside]
        assert 1 <= change.max() <= 5


@given(width=sides, height=sides, mode=modes)
def test_the_trigger_is_four_mirrored_patches(
    attack: LabelConsistent, picture: Draw, width: int, height: int, mode: str
) -> None:
    image = picture(3, width, height, mode)
    before, after = levels(image), levels(attack.trigger(image))
    side = max(1, round(3 * min(width, height) / 32))
    outside = ~corners(height, width, side)
    assert (after[outside] == before[outside]).all()
    patch = after[-side:, -side:]
    assert set(np.unique(patch)) <= {0, 255}
    assert (after[-side:, :side] == patch[:, ::-1]).all()
    assert (after[:side, -side:] == patch[::-1]).all()
    assert (after[:side, :side] == patch[::-1, ::-1]).all()


def test_the_patch_at_32_pixels(attack: LabelConsistent, picture: Draw) -> None:
    after = levels(attack.trigger(picture(2)))
    assert (after[-3:, -3:, 0] == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(attack: LabelConsistent, picture: Draw, mode: str) -> None:
    image = picture(0).convert(mode)
    before = image.tobytes()
    assert attack.trigger(image).mode == "RGB"
    assert image.tobytes() == before


def test_fits_repeat_and_rates_differ(attack: LabelConsistent, pictures: Make) -> None:
    again = pickle.loads(pickle.dumps(fitted(pictures())))
    assert all(torch.equal(again.tensors[name], value) for name, value in attack.tensors.items())
    fewer = fitted(pictures(), rate=0.4).tensors["positions"].tolist()
    assert len(fewer) == 6
    assert set(fewer) < set(attack.tensors["positions"].tolist())


def test_another_dataset_is_refused(attack: LabelConsistent, pictures: Make) -> None:
    longer = attack.poison(pictures(400))
    with pytest.raises(CGDError, match=r"sample \d+ was not perturbed.*Call fit\(\) with the"):
        [longer[index] for index in longer.poisoned.tolist()]


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"eps": 1.5}, "eps must be a share of the grey range"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"patch_size": 17}, "patch_size must be 1 to 16"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelConsistent(**given_values)
