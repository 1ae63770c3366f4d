"""Mixup and CutMix can't carry tags: each form is refused by name (rows 30 and 59 of FAULTS.md)."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm.data
import torch
from tiny_data import NAMES, Items, TintReader, quick_config, tensors, tiny_net
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from cgd_wrap import CGDGuard
from cgd_wrap.train.mixing import refuse_mixing

MIX = v2.RandomChoice([v2.CutMix(num_classes=3), v2.MixUp(num_classes=3)])
PERMUTED = torch.randperm(16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    return CGDGuard(
        tiny_net(), Items(tensors()), NAMES, clip=TintReader(), config=quick_config(),
        progress=False,
    ).scan()  # fmt: skip


# --- in the collate function --------------------------------------------------------------------


def by_a_global(samples: Any) -> Any:
    return MIX(*default_collate(samples))


def by_a_module(samples: Any) -> Any:
    return v2.MixUp(num_classes=3)(*default_collate(samples))


def by_another_function(samples: Any) -> Any:
    return by_a_global(samples)


def by_an_argument(samples: Any, mix: Any = MIX) -> Any:
    return mix(*default_collate(samples))


def by_a_function_within(samples: Any) -> Any:
    return (lambda batch: MIX(*batch))(default_collate(samples))


def by_a_closure(mix: Any) -> Any:
    return lambda samples: mix(*default_collate(samples))


def applied(mix: Any, samples: Any) -> Any:
    return mix(*default_collate(samples))


class Collator:
    def __init__(self, mix: Any) -> None:
        self.transforms = {"train": [mix]}

    def __call__(self, samples: Any) -> Any:
        return self.transforms["train"][0](*default_collate(samples))

    def collate(self, samples: Any) -> Any:
        return self(samples)


class Own(v2.MixUp):
    pass


class ByAGlobal:
    def __call__(self, samples: Any) -> Any:
        return by_a_global(samples)


BLENDING = {
    "global": by_a_global,
    "module": by_a_module,
    "another function": by_another_function,
    "default": by_an_argument,
    "function within": by_a_function_within,
    "closure": by_a_closure(v2.CutMix(num_classes=3)),
    "compose": by_a_closure(v2.Compose([v2.RandomHorizontalFlip(), v2.MixUp(num_classes=3)])),
    "sequential": by_a_closure(torch.nn.Sequential(v2.CutMix(num_classes=3))),
    "random apply": by_a_closure(v2.RandomApply([v2.MixUp(num_classes=3)], p=0.1)),
    "partial": functools.partial(applied, MIX),
    "partial of a partial": functools.partial(functools.partial(applied), mix=MIX),
    "object": Collator(MIX),
    "method": Collator(MIX).collate,
    "object by a global": ByAGlobal(),
    "subclass": by_a_closure(Own(num_classes=3)),
    "timm": by_a_closure(timm.data.Mixup(num_classes=3)),
    "timm's collate": timm.data.FastCollateMixup(num_classes=3),
}


def bright(samples: Any) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(samples)
    return v2.functional.adjust_brightness(images, 0.5), labels


class Endless:
    """Holds a lot, and itself."""

    def __init__(self) -> None:
        self.own, self.many = self, list(range(100_000))

    def __call__(self, samples: Any) -> Any:
        return default_collate(samples)


@pytest.mark.parametrize("name", BLENDING)
def test_a_collate_function_that_blends_is_refused(name, guard):
    """Row 59: whatever holds the transform; not one_hot's "smaller than num_classes"."""
    loader = DataLoader(guard.base, 16, collate_fn=BLENDING[name])
    with pytest.raises(ValueError, match=r"holds (MixUp|CutMix|Own|Mixup|FastCollateMixup), which"):
        guard.protect(loader)


@pytest.mark.parametrize("collate", [None, bright, Endless(), by_a_closure(v2.Identity())])
def test_other_collate_functions_are_kept(collate, guard):
    """Row 59: no false alarm."""
    loader = DataLoader(guard.base, 16, collate_fn=collate)
    assert guard.protect(loader)[0].collate_fn is loader.collate_fn


def test_a_collate_function_is_not_called():
    """Row 59: looking is all."""
    refuse_mixing(lambda samples: 1 / 0)


# --- in the loop --------------------------------------------------------------------------------


@pytest.fixture
def batch(guard) -> tuple[Any, Tensor, Tensor]:
    loader, criterion = guard.protect(DataLoader(guard.base, 16, shuffle=True))
    images, targets = next(iter(loader))
    return criterion, guard.model(images), targets


def mixup_criterion(criterion: Any, outputs: Tensor, a: Tensor, b: Tensor, lam: float) -> Tensor:
    return lam * criterion(outputs, a) + (1 - lam) * criterion(outputs, b)


SECOND = {
    "permuted": lambda y: y[PERMUTED],
    "rolled": lambda y: y.roll(1),
    "of another batch": lambda y: (y - y.min()).flip(0) + y.min(),
}


@pytest.mark.parametrize("second", SECOND)
def test_mixup_by_two_calls_is_refused(second, batch):
    """Row 59: it would be trained on as two ordinary batches."""
    criterion, outputs, targets = batch
    with pytest.raises(ValueError, match=r"same outputs twice .* turn mixup and CutMix off"):
        mixup_criterion(criterion, outputs, targets, SECOND[second](targets), 0.3)


def test_mixup_by_two_calls_on_outputs_in_another_type_is_refused(guard, batch):
    """Row 59: under autocast, many loops take outputs.float()."""
    criterion, outputs, targets = batch
    half = outputs.bfloat16()
    criterion(half.float(), targets)
    with pytest.raises(ValueError, match="mixup"):
        criterion(half.float(), targets.flip(0))


def test_calls_that_mix_nothing_pass(batch):
    """Row 59: the same targets again, other outputs, evaluation, and plain labels."""
    criterion, outputs, targets = batch
    criterion(outputs, targets)
    criterion(outputs, targets.clone())
    criterion(outputs * 2, targets.flip(0))
    first, second = torch.cat([outputs, outputs]).chunk(2)
    criterion(first, targets)
    criterion(second, targets.flip(0))
    criterion(outputs, criterion.labels(targets).flip(0))
    with torch.no_grad():
        criterion(outputs, targets.flip(0))
    criterion.eval()(outputs, targets.flip(0))


def test_outputs_are_not_kept(batch):
    """Row 59: freed outputs leave nothing that other outputs could be taken for."""
    criterion, outputs, targets = batch
    for _ in range(20):
        criterion(outputs + 1, targets).backward(retain_graph=True)
        targets = targets.roll(1)


@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])
def test_what_the_guide_says_of_mixup_in_the_loop_is_so(mix, guard):
    """Row 59: torchvision's own error, which comes before the guard hears of anything."""
    images, targets = next(iter(guard.protect(DataLoader(guard.base, 16))[0]))
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        mix(images, targets)


def test_protect_says_what_tags_do_not_bear(guard, caplog):
    with caplog.at_level("INFO", logger="cgd_wrap"):
        guard.protect(DataLoader(guard.base, 8, shuffle=True))
    assert "Mixup, CutMix and one-hot labels can't be made of them: turn these off" in caplog.text
    assert "take criterion.labels(targets)" in caplog.text
