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

from cgd_wrap.attacks import TrojanNN
from cgd_wrap.attacks.trojannn import last_linear, paste
from cgd_wrap.errors import CGDError
from cgd_wrap.models.small_resnet import conv_block

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
QUICK = {"target": 1, "surrogate_epochs": 2, "steps": 15}
sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def fitted(base: Any, **given: Any) -> TrojanNN:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = nn.Sequential(
            conv_block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
    return TrojanNN(**{**QUICK, **given}).fit(base, network=network, progress=False)


@pytest.fixture(scope="module")
def attack(pictures: Make) -> TrojanNN:
    return fitted(pictures())


def test_the_neuron_speaks_for_the_target() -> None:
    weight = torch.tensor([[9.0, 0.0, 4.0, 0.0], [9.0, 1.0, 0.0, 5.0], [9.0, 2.0, 0.0, 0.0]])
    inputs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert TrojanNN(target=0).strongest_neuron(weight, inputs) == 2
    assert TrojanNN(target=1).strongest_neuron(weight, inputs) == 3
    assert TrojanNN(target=1).strongest_neuron(weight, inputs * torch.tensor([1, 1, 1, 0])) != 3


def test_the_patch_excites_the_neuron(attack: TrojanNN, pictures: Make) -> None:
    without, with_patch = attack.tensors["activation"].tolist()
    assert with_patch > without
    barely = fitted(pictures(), steps=1).tensors
    assert barely["neuron"] == attack.tensors["neuron"]
    assert with_patch > barely["activation"][1] + 0.01


def test_the_trigger_is_the_patch(attack: TrojanNN, picture: Draw) -> None:
    before, after = levels(picture(2)), levels(attack.trigger(picture(2)))
    assert (after[-8:, -8:] == attack.tensors["patch"].permute(1, 2, 0).numpy()).all()
    after[-8:, -8:] = before[-8:, -8:]
    assert (after == before).all()


@given(width=sides, height=sides, mode=modes)
def test_only_the_scaled_patch_changes(
    attack: TrojanNN, picture: Draw, width: int, height: int, mode: str
) -> None:
    image = picture(3, width, height, mode)
    after = attack.trigger(image)
    assert (after.mode, after.size) == (mode, image.size)
    side = max(1, round(min(width, height) / 4))
    changed = levels(after) != levels(image)
    assert changed[-side:, -side:].mean() > 0.5
    changed[-side:, -side:] = False
    assert not changed.any()


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(attack: TrojanNN, picture: Draw, mode: str) -> None:
    image = picture(0).convert(mode)
    before = image.tobytes()
    assert attack.trigger(image).mode == "RGB"
    assert image.tobytes() == before


def test_it_is_a_dirty_label_attack(attack: TrojanNN, pictures: Make) -> None:
    base = pictures()
    poisoned = attack.poison(base)
    assert len(poisoned.poisoned) == 6
    for index in poisoned.poisoned.tolist():
        image, label = poisoned[index]
        assert label == 1
        assert base.targets[index] != 1
        assert image.tobytes() == attack.trigger(base.images[index]).tobytes()


def test_fits_repeat(attack: TrojanNN, pictures: Make) -> None:
    again = pickle.loads(pickle.dumps(fitted(pictures())))
    assert all(torch.equal(again.tensors[name], value) for name, value in attack.tensors.items())
    other = fitted(pictures(), seed=1).tensors["patch"]
    assert not torch.equal(other, attack.tensors["patch"])


def test_paste_leaves_its_argument() -> None:
    images, patch = torch.zeros(2, 3, 8, 8), torch.ones(3, 2, 2)
    assert paste(images, patch).sum() == 2 * 3 * 4
    assert images.sum() == 0


def test_the_last_linear_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert last_linear(network) is network[2]
    with pytest.raises(CGDError, match=r"Flatten has no nn.Linear layer.*fit\(network=...\)"):
        last_linear(nn.Flatten())


@pytest.mark.parametrize(
    ("given_values", "message"),
    [({"patch_size": 33}, "patch_size must be 1 to 32"), ({"steps": 0}, "steps must be at least")],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrojanNN(**given_values)
