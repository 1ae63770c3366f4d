"""The drill leaves everything as it was, and does what it is told on the way."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import Items
from torch import nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.attacks import BadNets, LabelConsistent
from cgd_wrap.demo.painting import CLASSES
from cgd_wrap.demo.run import CLIP, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.drill.drilling import TEST_SHARE
from cgd_wrap.drill.training import Recipe
from cgd_wrap.errors import DatasetError
from cgd_wrap.models.small_resnet import small_resnet

SIZE = 60
DRILLED = 240  # enough to learn a backdoor from
QUICK = CGDConfig(
    suspicious_epochs=1, suspicious_side=16, epochs=1, allow_missing_classes=True, batch_size=64
)


def guard_of(size: int = SIZE, **options) -> CGDGuard:
    """A guard of a data set that has a transform, as users' have."""
    shapes = ShapesDataset(size, 21, transform=to_tensor)
    model = small_resnet(10, (4, 8, 8, 8))
    return CGDGuard(model, shapes, clip=CLIP, config=QUICK, progress=False, **options)


def seen_by(model: nn.Module, dataset, into: list) -> None:
    """In place of a training: what it was given."""
    into.append((model, dataset, [int(label) for _, label in dataset]))


@pytest.fixture(scope="module")
def drilled():
    """A drill, and the guard that it was of."""
    guard = guard_of(DRILLED)
    before = copy.deepcopy(guard.model.state_dict())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    outcome = guard.drill("badnets", rate=0.2, recipe=Recipe(epochs=8, batch_size=32))
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    return guard, before, outcome, (expected, drawn)


def test_the_backdoor_is_learned_and_figures_come_back(drilled):
    outcome = drilled[2]
    assert outcome.before.attack_success_rate > 0.5
    assert outcome.attack == {"attack": "BadNets", "target": 0, "rate": 0.2}
    assert outcome.poisoned.sum() == round(0.2 * len(outcome.poisoned))
    assert outcome.detection.poison_in_triggered > 0.3
    assert "before (backdoored)" in outcome.as_text()


def test_a_fifth_of_each_class_is_measured_on(drilled):
    guard, _, outcome, _ = drilled
    kept = len(outcome.guard.targets)
    assert kept == pytest.approx((1 - TEST_SHARE) * DRILLED, abs=5)
    labels = torch.tensor(outcome.guard.base.original_targets)
    ratio = torch.bincount(labels) / torch.bincount(guard.targets)
    assert ((ratio - 0.8).abs() < 0.03).all()


def test_nothing_of_it_reaches_the_real_run(drilled):
    guard, weights, outcome, (expected, drawn) = drilled
    assert all(torch.equal(guard.model.state_dict()[name], t) for name, t in weights.items())
    assert outcome.guard.model is not guard.model
    assert guard._result is None
    assert guard.base[0][0].shape == (3, 32, 32)  # its transform is still there
    assert drawn == expected


def test_the_cache_is_left_alone(tmp_path: Path):
    guard = guard_of(cache_dir=tmp_path / "cache").scan()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    split = guard.split
    guard.drill(rate=0.2, train=lambda model, data: None)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == files
    assert guard.split is split


def test_a_training_of_the_users_is_used_on_fresh_networks():
    guard, seen = guard_of(), []
    test = ShapesDataset(50, 22, transform=to_tensor)
    attack = BadNets(target=3, rate=0.5)
    outcome = guard.drill(
        attack, rate=0.1, test_dataset=test, train=lambda m, d: seen_by(m, d, seen),
        train_transform=lambda image: to_tensor(image) * 0 + 7,
    )  # fmt: skip
    (victim, poisoned, labels), (clean_model, clean, clean_labels) = seen
    assert len(poisoned) == len(clean) == SIZE  # nothing was held out
    assert clean_labels == guard.targets.tolist()
    changed = [i for i in range(SIZE) if labels[i] != clean_labels[i]]
    assert len(changed) > 0.08 * SIZE
    assert all(labels[i] == 3 for i in changed)
    assert poisoned[0][0].eq(7).all()
    assert victim is outcome.guard.model
    assert victim is not clean_model


def weights(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def test_an_attack_that_needs_fitting_is_fitted():
    attack = LabelConsistent(rate=0.5, surrogate_epochs=1, steps=1)
    outcome = guard_of().drill(attack, train=lambda model, data: None)
    assert outcome.guard.base.attack.fitted
    assert not attack.fitted


def test_the_test_set_is_read_as_the_training_set_is():
    def samples(size: int, seed: int) -> Items:
        shapes = ShapesDataset(size, seed)
        return Items([{"x": i, "thumbnail": i.resize((8, 8)), "y": k} for i, k in shapes])

    guard = CGDGuard(
        small_resnet(10, (4, 8, 8, 8)), samples(SIZE, 24), CLASSES, clip=CLIP, config=QUICK,
        progress=False, image_key="x", label_key="y",
    )  # fmt: skip
    sizes = []

    def noted(image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        return to_tensor(image)

    guard.drill(
        rate=0.2, test_dataset=samples(30, 25), test_transform=noted, train=lambda model, data: None
    )
    assert set(sizes) == {(32, 32)}


def test_an_unknown_attack_names_the_known_ones():
    with pytest.raises(ValueError, match="badnets"):
        guard_of().drill("badnet")


def test_a_target_that_does_not_exist_is_refused_before_any_training():
    with pytest.raises(DatasetError, match="target class 10 does not exist"):
        guard_of().drill(BadNets(target=10), train=lambda model, data: pytest.fail("trained"))
