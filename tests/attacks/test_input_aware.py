from __future__ import annotations

import dataclasses
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

from cgd_wrap.attacks import InputAware
from cgd_wrap.attacks.surrogate import Material, as_planes, centred, shifted
from cgd_wrap.attacks.trigger_generator import TriggerPair
from cgd_wrap.models.small_resnet import small_resnet

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]
QUICK = {"target": 1, "surrogate_epochs": 3, "mask_epochs": 3}
sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def network() -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return small_resnet(4, (4, 4, 8, 8))


def fitted(base: Any, **given: Any) -> InputAware:
    return InputAware(**{**QUICK, **given}).fit(base, network=network(), progress=False)


@pytest.fixture(scope="module")
def attack(pictures: Make) -> InputAware:
    return fitted(pictures())


def planes_of(image: Image.Image) -> torch.Tensor:
    return as_planes(image, 32)[None].float() / 255


# --- the trigger --------------------------------------------------------------------------------


def test_the_trigger_follows_the_formula(attack: InputAware, picture: Draw) -> None:
    for seed in range(5):
        planes = planes_of(picture(seed))
        mask, pattern = attack.generators.mask(planes), attack.generators.pattern(planes)
        assert (mask.shape, pattern.shape) == ((1, 1, 32, 32), (1, 3, 32, 32))
        expected = 255 * (planes + mask * (pattern - planes))[0].permute(1, 2, 0).numpy()
        assert np.abs(levels(attack.trigger(picture(seed))) - expected).max() <= 0.5 + 1e-3


def test_triggers_differ_between_images(attack: InputAware, picture: Draw) -> None:
    canvas = Image.new("RGB", (32, 32), (128, 128, 128))
    donors = [as_planes(picture(seed), 32) for seed in range(4)]
    marks = [attack.transplant(donor, canvas).tobytes() for donor in donors]
    assert len(set(marks)) == 4
    own = attack.transplant(donors[0], picture(0))
    assert own.tobytes() == attack.trigger(picture(0)).tobytes()
    assert own.tobytes() != attack.transplant(donors[1], picture(0)).tobytes()


@given(width=sides, height=sides, mode=modes)
def test_any_size(attack: InputAware, picture: Draw, width: int, height: int, mode: str) -> None:
    image = picture(3, width, height, mode)
    before = image.tobytes()
    after = attack.trigger(image)
    assert (after.mode, after.size) == (mode, image.size)
    assert (levels(after) != levels(image)).any()
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_other_modes(attack: InputAware, picture: Draw, mode: str) -> None:
    assert attack.trigger(picture(0).convert(mode)).mode == "RGB"


# --- poison and covers --------------------------------------------------------------------------


def test_poison_and_covers(attack: InputAware, pictures: Make) -> None:
    base = pictures()
    poisoned = attack.poison(base)
    assert (len(poisoned.poisoned), len(poisoned.covered)) == (6, 6)
    for index in poisoned.poisoned.tolist():
        image, label = poisoned[index]
        assert image.tobytes() == attack.trigger(base.images[index]).tobytes()
        assert label == 1
    for index in poisoned.covered.tolist():
        image, label = poisoned[index]
        assert label == base.targets[index]
        assert image.tobytes() not in {
            base.images[index].tobytes(),
            attack.trigger(base.images[index]).tobytes(),
        }


def test_a_cover_carries_the_trigger_of_another_sample(attack: InputAware, pictures: Make) -> None:
    images = pictures().images
    for index in range(2):
        cover = attack.cover_sample(index, images[index], []).tobytes()
        found = [
            donor
            for donor in range(60)
            if attack.transplant(as_planes(images[donor], 32), images[index]).tobytes() == cover
        ]
        assert len(found) == 1
        assert found != [index]


def test_no_sample_is_its_own_donor(pictures: Make, picture: Draw) -> None:
    two = fitted(pictures(), surrogate_samples=2)
    donors, positions = two.tensors["donors"], two.tensors["donor_positions"].tolist()
    for row, index in enumerate(positions):
        other = two.transplant(donors[1 - row], picture(0)).tobytes()
        assert two.cover_sample(index, picture(0), []).tobytes() == other


def test_donors_are_what_they_say(attack: InputAware, pictures: Make) -> None:
    base, kept = pictures(), attack.tensors
    assert sorted(kept["donor_positions"].tolist()) == list(range(60))
    for planes, position in zip(kept["donors"], kept["donor_positions"].tolist(), strict=True):
        assert torch.equal(planes, as_planes(base.images[position], 32))


# --- training -----------------------------------------------------------------------------------


def material_of(base: Any, side: int = 32) -> Material:
    return Material(
        raw=base.images, labels=torch.tensor(base.targets), num_classes=4, side=side,
        network=network(), normalise=centred, seed=0, limit=60, progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_masks_become_sparse_and_stay_apart(pictures: Make) -> None:
    base = pictures(128)
    material = material_of(base, side=16)
    images = material.read(range(128))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        pair = TriggerPair()
    with torch.no_grad():
        before = pair.mask.eval()(images.float() / 255).mean()
    pair.train()
    InputAware(mask_epochs=25, density=0.1).train_mask(
        pair, material, images, material.labels, torch.Generator().manual_seed(0)
    )
    masks = pair.mask(images.float() / 255)
    assert not pair.mask.training
    assert before > 0.3
    assert masks.mean() < 0.15
    assert (masks - masks.roll(1, 0)).abs().mean() > 0.5 * masks.mean()


def test_the_joint_loss_asks_for_the_target_on_own_triggers_only(pictures: Make) -> None:
    seen: list[torch.Tensor] = []

    def normalise(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return centred(images)

    material = dataclasses.replace(material_of(pictures(40)), normalise=normalise)
    material.network.eval()
    pair, batch = TriggerPair().eval(), material.read(range(40)).float() / 255
    first, again = (torch.Generator().manual_seed(0) for _ in range(2))
    attack = InputAware(target=2, diversity=0.0)
    loss = attack.joint_loss(pair, material, batch, material.labels, first)

    own, crossed = pair(batch[:4]), pair(batch.flip(0)[:4], onto=batch[4:8])
    expected = shifted(torch.cat([own, crossed, batch[8:]]), again)
    assert torch.allclose(seen[0], expected, atol=1e-6)
    wanted = torch.cat([torch.full((4,), 2), material.labels[4:]])
    exact = F.cross_entropy(material.network(centred(expected)), wanted)
    assert torch.allclose(loss, exact, atol=1e-5)


def test_fits_repeat(attack: InputAware, pictures: Make) -> None:
    again = pickle.loads(pickle.dumps(fitted(pictures())))
    assert all(torch.equal(again.tensors[name], value) for name, value in attack.tensors.items())


def test_a_used_attack_pickles(attack: InputAware, picture: Draw) -> None:
    expected = attack.trigger(picture(7)).tobytes()
    assert pickle.loads(pickle.dumps(attack)).trigger(picture(7)).tobytes() == expected


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"mask_epochs": 0}, "mask_epochs must be at least 1"),
        ({"density": 0.0}, "density must be a share"),
        ({"diversity": -1.0}, "diversity must be at least 0"),
        ({"cover_ratio": -0.1}, "cover_ratio must be 0 or more"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputAware(**given_values)
