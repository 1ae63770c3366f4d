from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from cgd_wrap.attacks import SIG, Attack, BadNets, Blended, LabelFlip
from cgd_wrap.attacks.label_flip import warmth
from cgd_wrap.errors import DatasetError

Make = Callable[..., Any]
FIRST_CHOSEN = [3, 4, 13, 15, 23]
DIRTY = [BadNets(target=1), Blended(target=1)]
ALL = [*DIRTY, SIG(target=1), LabelFlip(target=1, rate=0.1)]


def named(attack: Attack) -> str:
    return type(attack).__name__


def same_image(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode and first.tobytes() == second.tobytes()


def levels(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image)


# --- selection ----------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    rate=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
    target=st.integers(0, 4),
)
@pytest.mark.parametrize("kind", [BadNets, SIG])
def test_selection(
    kind: type[Attack], labels: list[int], rate: float, seed: int, target: int
) -> None:
    attack, given_labels = kind(target=target, rate=rate, seed=seed), torch.tensor(labels)
    qualifies = given_labels == target if kind is SIG else given_labels != target
    whole = int(qualifies.sum()) if kind is SIG else len(labels)
    count = round(rate * whole)
    if not 0 < count <= int(qualifies.sum()):
        with pytest.raises(ValueError, match=f"poison {count} of {len(labels)}"):
            attack.select(given_labels, [])
        return
    chosen = attack.select(given_labels, [])
    assert chosen.dtype == torch.int64
    assert len(chosen) == count
    assert (chosen.diff() > 0).all()
    assert qualifies[chosen].all()
    assert torch.equal(chosen, attack.select(given_labels, []))


def test_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    first, again, other = (BadNets(rate=0.1, seed=seed).select(labels, []) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert len(set(first.tolist()) - set(other.tolist())) > 60
    # Written down once: the same samples on every machine and under every release of numpy.
    assert first[:5].tolist() == FIRST_CHOSEN


def test_label_flip_takes_the_warmest(pictures: Make) -> None:
    base = pictures(80)
    chosen = LabelFlip(target=1, rate=0.1).poison(base).poisoned.tolist()
    others = [i for i, label in enumerate(base.targets) if label != 1]
    ranked = sorted(others, key=lambda index: -warmth(base.images[index]))
    assert chosen == sorted(ranked[:8])


def test_label_flip_shuffles_ties() -> None:
    images = [Image.new("RGB", (4, 4), (9, 9, 9))] * 100
    labels = torch.arange(100) % 2
    first, other = (LabelFlip(rate=0.2, seed=seed).select(labels, images) for seed in (0, 1))
    assert first.tolist() != other.tolist()
    assert (labels[first] == 1).all()


# --- poisoned data sets -------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ALL, ids=named)
def test_what_is_poisoned_and_what_is_not(attack: Attack, pictures: Make) -> None:
    base = pictures()
    poisoned = attack.poison(base)
    marked = set(poisoned.poisoned.tolist())
    assert len(poisoned) == len(base)
    assert poisoned.original_targets == base.targets
    assert (poisoned.classes, poisoned.class_to_idx) == (base.classes, base.class_to_idx)
    for index in range(len(base)):
        image, label = poisoned[index]
        assert label == poisoned.targets[index]
        assert type(label) is int
        changed = index in marked and not isinstance(attack, LabelFlip)
        expected = attack.trigger(base.images[index]) if changed else base.images[index]
        assert same_image(image, expected)
        flipped = index in marked and not isinstance(attack, SIG)
        assert label == (1 if flipped else base.targets[index])
        assert flipped == (label != base.targets[index])


@pytest.mark.parametrize(
    ("attack", "count"),
    [(BadNets(), 6), (BadNets(rate=0.75), 45), (Blended(), 6), (SIG(), 12), (LabelFlip(), 3)],
)
def test_counts(attack: Attack, count: int, pictures: Make) -> None:
    poisoned = attack.poison(pictures(60, 4))
    assert len(poisoned.poisoned) == count
    originals = {poisoned.original_targets[index] for index in poisoned.poisoned.tolist()}
    assert (originals == {0}) if isinstance(attack, SIG) else (0 not in originals)


def test_more_than_qualify(pictures: Make) -> None:
    with pytest.raises(ValueError, match="48 of 60 samples, and 45 qualify"):
        BadNets(rate=0.8).poison(pictures(60, 4))
    with pytest.raises(ValueError, match="0 of 60"):
        BadNets(rate=0.001).poison(pictures(60, 4))


@given(order=st.permutations(range(12)))
@settings(max_examples=20)
def test_items_depend_on_nothing_but_the_index(order: list[int], pictures: Make) -> None:
    poisoned = Blended(rate=0.5).poison(pictures(12, 4))
    expected = [poisoned[index] for index in range(12)]
    for index in order:
        image, label = poisoned[index]
        assert same_image(image, expected[index][0])
        assert label == expected[index][1]


def test_the_transform_sees_the_trigger(pictures: Make) -> None:
    base, attack = pictures(), BadNets()
    poisoned = attack.poison(base, transform=levels)
    first = int(poisoned.poisoned[0])
    assert torch.equal(poisoned[first][0], levels(attack.trigger(base.images[first])))
    triggered = attack.triggered(base, transform=levels)
    expected = levels(attack.trigger(base.images[int(triggered.indices[0])]))
    assert torch.equal(triggered[0][0], expected)


def test_a_copy_without_transform_leaves_the_original_alone(pictures: Make) -> None:
    for original in (
        BadNets().poison(pictures(), transform=levels),
        BadNets().triggered(pictures(), transform=levels),
    ):
        raw = copy.copy(original)
        raw.transform = None
        assert isinstance(raw[0][0], Image.Image)
        assert isinstance(original[0][0], torch.Tensor)


def test_pickling(pictures: Make) -> None:
    poisoned = Blended().poison(pictures(), transform=levels)
    twin = pickle.loads(pickle.dumps(poisoned))
    assert twin.targets == poisoned.targets
    loaders = [DataLoader(data, batch_size=20, num_workers=0) for data in (poisoned, twin)]
    for (images, labels), (twin_images, twin_labels) in zip(*loaders, strict=True):
        assert torch.equal(images, twin_images)
        assert torch.equal(labels, twin_labels)


def test_indices_of_every_kind(pictures: Make) -> None:
    for data in (BadNets().poison(pictures(9)), BadNets(rate=0.2).triggered(pictures(9))):
        last = len(data) - 1
        for index in (-1, np.int64(last), torch.tensor(last)):
            assert same_image(data[index][0], data[last][0])
        with pytest.raises(IndexError):
            data[len(data)]
        assert len(list(data)) == len(data)  # type: ignore[call-overload]


def test_attacks_stack(pictures: Make) -> None:
    base = pictures()
    first = BadNets(target=0, seed=1).poison(base)
    second = Blended(target=2, seed=2).poison(first)
    assert second.original_targets == first.targets
    both = set(first.poisoned.tolist()) & set(second.poisoned.tolist())
    for index in both | {int(second.poisoned[0])}:
        assert same_image(second[index][0], Blended(seed=2).trigger(first[index][0]))


# --- triggered data sets ------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ALL, ids=named)
def test_triggered(attack: Attack, pictures: Make) -> None:
    base = pictures()
    triggered = attack.triggered(base)
    assert triggered.indices.tolist() == [i for i, y in enumerate(base.targets) if y != 1]
    assert triggered.targets == [y for y in base.targets if y != 1]
    assert triggered.classes == base.classes
    for item, index in enumerate(triggered.indices.tolist()):
        image, label = triggered[item]
        assert same_image(image, attack.trigger(base.images[index]))
        assert (label, type(label)) == (base.targets[index], int)


def test_only_the_target_class(pictures: Make) -> None:
    with pytest.raises(DatasetError, match="all 3 test images are of the target class 0"):
        BadNets().triggered(pictures(3, 1))
