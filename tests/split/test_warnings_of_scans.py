from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.attacks import SIG, Attack, BadNets
from cgd_wrap.attacks.poisoning import PoisonedDataset
from cgd_wrap.demo.run import CLIP, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset


def small() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))


SIZE = 400
SHAPES = ShapesDataset(SIZE, 6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Of the honest shapes, whose names alone differ between the tests."""
    return tmp_path_factory.mktemp("cache")


def shapes_guard(attack: Attack | None = None, names=None, cache=None) -> CGDGuard:
    data = ShapesDataset(SIZE, 6, to_tensor) if attack is None else PoisonedDataset(
        SHAPES, attack, to_tensor
    )  # fmt: skip
    return CGDGuard(
        small(), data, names, clip=CLIP, cache_dir=cache, progress=False,
        config=CGDConfig(
            allow_missing_classes=True, suspicious_network="copy", suspicious_epochs=1
        ),
    )  # fmt: skip


@pytest.mark.parametrize("attack", [None, BadNets(rate=0.1), SIG(rate=0.8, delta=60 / 255)])
def test_the_demos_clip_is_trusted_on_its_shapes(attack, cache, caplog):
    with caplog.at_level(logging.WARNING, logger="cgd_wrap"):
        guard = shapes_guard(attack, cache=cache if attack is None else None).scan()
    assert guard.result.warnings == []
    assert not caplog.records


def test_a_name_that_clip_does_not_know_is_warned_of_once(cache, caplog):
    names = list(SHAPES.classes)
    names[names.index("arrow")] = "seven letters"
    guard = shapes_guard(names=names, cache=cache)
    with caplog.at_level(logging.WARNING, logger="cgd_wrap"):
        guard.scan()
    [text] = [text for text in guard.result.warnings if "their name" in text]
    assert "'seven letters' (" in text
    assert "'heart' (" not in text
    assert [r.getMessage() for r in caplog.records].count(text) == 1


def test_swapped_names_are_warned_of(cache):
    guard = shapes_guard(cache=cache)
    guard.class_names[1], guard.class_names[5] = guard.class_names[5], guard.class_names[1]
    text = " ".join(guard.scan().result.warnings)
    for name, other in (("square", "ring"), ("ring", "square")):
        assert f"{name!r} (" in text
        assert f"are taken for {other!r})" in text
