from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset

from cgd_wrap.attacks import SIG, BadNets, LabelFlip, TrojanNN
from cgd_wrap.attacks.flip_labels import FLIP
from cgd_wrap.attacks.label_matching import (
    Pairs,
    expert_trajectory,
    gradient_gap,
    label_slope,
    log_slope,
    matched_logits,
)
from cgd_wrap.attacks.surrogate import Material, centred
from cgd_wrap.errors import CGDError
from cgd_wrap.models.small_resnet import conv_block

Make = Callable[..., Any]
QUICK: dict[str, Any] = {"target": 1, "rate": 0.1, "surrogate_epochs": 3, "passes": 2}


def small_network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            conv_block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )


def fitted(base: Any, **given: Any) -> FLIP:
    return FLIP(**{**QUICK, **given}).fit(base, network=small_network(), progress=False)


def material_of(base: Any, **given: Any) -> Material:
    standard: dict[str, Any] = {
        "raw": base.images, "labels": torch.tensor(base.targets), "num_classes": 4, "side": 32,
        "network": small_network(), "normalise": centred, "seed": 0, "limit": 1000,
        "progress": False,
    }  # fmt: skip
    return Material(**{**standard, **given})


@pytest.fixture(scope="module")
def attack(pictures: Make) -> FLIP:
    return fitted(pictures())


# --- matching -----------------------------------------------------------------------------------


def squared_gap(
    material: Material, shown: Tensor, given: Tensor, clean: Tensor, z: Tensor
) -> Tensor:
    """What is descended on, to be differentiated twice."""
    weights = list(material.network.parameters())
    expert = torch.autograd.grad(F.cross_entropy(material.logits(shown), given), weights)
    loss = F.cross_entropy(material.logits(clean), z.softmax(dim=1))
    student = torch.autograd.grad(loss, weights, create_graph=True)
    gaps = [(a - b).square().sum() for a, b in zip(student, expert, strict=True)]
    return torch.stack(gaps).sum()


def test_the_slope_is_that_of_the_squared_gap(pictures: Make) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 4))
    material = material_of(pictures(), network=network)
    clean, shown = torch.rand((2, 6, 3, 4, 4), generator=generator)
    given = torch.randint(4, (6,), generator=generator)
    logits = torch.randn((6, 4), generator=generator).requires_grad_()
    (exact,) = torch.autograd.grad(squared_gap(material, shown, given, clean, logits), logits)
    labels = logits.detach().softmax(dim=1)
    gap = gradient_gap(material, shown, given, clean, labels)
    before = [weight.clone() for weight in network.parameters()]
    found = label_slope(labels, log_slope(material, clean, gap))
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.999
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_pairs_show_the_same_sample_moved_alike(pictures: Make) -> None:
    base = pictures()
    material, attack = material_of(base), FLIP(target=1, expert=BadNets(patch_size=6))
    pairs = attack.pairs(material, torch.arange(60))
    copies = len(pairs.given) - 60
    assert (pairs.count, copies) == (60, 9)  # a fifth of 45
    assert (pairs.given[60:] == 1).all()
    assert (torch.tensor(base.targets)[pairs.own[60:]] != 1).all()
    assert pairs.own[:60].tolist() == list(range(60))
    seen = 0
    for shown, given, clean, own in pairs.batches(
        torch.Generator().manual_seed(0), material.device
    ):
        is_copy = (shown != clean).flatten(1).any(dim=1)
        seen += int(is_copy.sum())
        assert (given[is_copy] == 1).all()
        assert torch.equal(given[~is_copy], torch.tensor(base.targets)[own[~is_copy]])
        assert (shown[is_copy] == clean[is_copy]).flatten(1).float().mean() > 0.9
    assert seen == copies


def test_the_trajectory_is_the_experts(pictures: Make) -> None:
    material = material_of(pictures())
    pairs = FLIP(target=1).pairs(material, torch.arange(60))
    states = expert_trajectory(material, pairs, epochs=6, stops=3)
    assert len(states) == 3
    last = material.network.state_dict()
    assert all(torch.equal(states[-1][name], value) for name, value in last.items())
    assert not torch.equal(states[0]["3.weight"], states[1]["3.weight"])


def test_labels_become_those_that_the_expert_was_given(pictures: Make) -> None:
    base = pictures()
    for index, label in enumerate(base.targets):
        base.images[index] = Image.new("RGB", (32, 32), tuple(200 * (label == c) for c in range(3)))
    material = material_of(base)
    images, labels = material.read(range(60)), material.labels
    clean = Pairs(shown=images, given=labels, own=torch.arange(60), count=60)
    # The expert is told that images of class 2, as they are, are of class 1.
    copied = torch.nonzero(labels == 2).flatten()[:6]
    told = Pairs(
        shown=torch.cat([images, images[copied]]),
        given=torch.cat([labels, torch.full((6,), 1)]),
        own=torch.cat([clean.own, copied]),
        count=60,
    )
    trajectory = expert_trajectory(material, told, epochs=8, stops=8)
    kept = matched_logits(material, clean, trajectory)
    assert torch.equal(kept.argmax(dim=1), labels)  # nothing to be gained by other labels
    found = matched_logits(material, told, trajectory)
    margins = (found[:, 1] - found.gather(1, labels[:, None])[:, 0])[labels != 1]
    assert (labels[labels != 1][margins.topk(6).indices] == 2).all()


# --- the attack ---------------------------------------------------------------------------------


def test_labels_change_and_no_pixel(attack: FLIP, pictures: Make) -> None:
    base = pictures()
    poisoned = attack.poison(base)
    marked = set(poisoned.poisoned.tolist())
    assert len(marked) == 6
    for index in range(60):
        image, label = poisoned[index]
        assert image.tobytes() == base.images[index].tobytes()
        assert label == (1 if index in marked else base.targets[index])
        assert index not in marked or base.targets[index] != 1


def test_the_highest_margins_are_relabelled(attack: FLIP, pictures: Make) -> None:
    positions, margins = attack.tensors["positions"], attack.tensors["margins"]
    assert [index for index in range(60) if index % 4 != 1] == positions.tolist()
    chosen = attack.poison(pictures()).poisoned
    is_chosen = torch.isin(positions, chosen)
    assert margins[is_chosen].min() > margins[~is_chosen].max()
    more = fitted(pictures(), rate=0.3).poison(pictures()).poisoned
    assert set(chosen.tolist()) < set(more.tolist())


def test_test_images_get_the_experts_trigger(attack: FLIP, pictures: Make) -> None:
    base = pictures()
    image = base.images[0]
    assert attack.trigger(image).tobytes() == LabelFlip().trigger(image).tobytes()
    wavy = fitted(base, expert=SIG(delta=6 / 255, frequency=8.0)).triggered(base)
    assert wavy[0][0].tobytes() == SIG(delta=6 / 255, frequency=8.0).trigger(image).tobytes()
    assert np.asarray(image).tobytes() == np.asarray(pictures().images[0]).tobytes()


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


def test_fits_repeat(attack: FLIP, pictures: Make) -> None:
    again = pickle.loads(pickle.dumps(fitted(pictures())))
    assert again == attack
    assert hash(again) == hash(attack)
    assert all(torch.equal(again.tensors[name], value) for name, value in attack.tensors.items())
    for other in ({"seed": 1}, {"expert": BadNets()}, {"expert_rate": 1.0}):
        margins = fitted(pictures(), **other).tensors["margins"]
        assert not torch.equal(margins, attack.tensors["margins"])


def test_the_cache_knows_the_expert(pictures: Make, tmp_path: Any) -> None:
    for expert in (BadNets(), BadNets(patch_size=5), LabelFlip(), LabelFlip()):
        FLIP(**QUICK, expert=expert).fit(
            pictures(), network=small_network(), cache_dir=tmp_path, progress=False
        )
    assert len(list(tmp_path.iterdir())) == 3


def test_samples_beyond_the_limit_keep_their_labels(pictures: Make) -> None:
    few = fitted(pictures(), surrogate_samples=30)
    assert len(few.tensors["positions"]) < 30
    with pytest.raises(ValueError, match="would poison 48 of 60 samples"):
        fitted(pictures(), surrogate_samples=30, rate=0.8).poison(pictures())


def test_another_dataset_is_refused(attack: FLIP, pictures: Make) -> None:
    for other in (Subset(pictures(), range(20)), pictures(80, 3)):
        with pytest.raises(CGDError, match=r"fitted to another dataset.*Call fit\(\)"):
            attack.poison(other)


def test_an_unfitted_attack_says_what_to_do(pictures: Make) -> None:
    with pytest.raises(CGDError, match="FLIP is not fitted"):
        FLIP().trigger(pictures().images[0])


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"expert": TrojanNN()}, "expert must be an attack that needs no fit"),
        ({"expert_rate": 0.0}, "expert_rate must be a share in"),
        ({"passes": 0}, "passes must be at least 1"),
    ],
)
def test_values_out_of_range(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FLIP(**given_values)
