from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cgd_wrap.attacks.surrogate import (
    Material,
    as_planes,
    batch_starts,
    batches,
    centred,
    common_side,
    shifted,
    train_surrogate,
)
from cgd_wrap.models.small_resnet import small_resnet

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]


def tiny(num_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return small_resnet(num_classes, (4, 4, 8, 8))


def material_of(base: Any = None, **changes: Any) -> Material:
    given = {
        "raw": getattr(base, "images", None),
        "labels": torch.tensor(getattr(base, "targets", [])),
        "num_classes": 4,
        "side": 32,
        "network": tiny(),
        "normalise": centred,
        "seed": 0,
        "limit": 1000,
        "progress": False,
    }
    return Material(**{**given, **changes})


@pytest.mark.slow
def test_a_surrogate_learns() -> None:
    shades = (20, 90, 160, 230)
    images = [Image.new("RGB", (20, 16), (shades[index % 4],) * 3) for index in range(128)]
    labels = torch.arange(128) % 4
    material = material_of(raw=images, labels=labels, side=16)
    network = train_surrogate(material, epochs=60)
    assert network is material.network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    planes = material.read(range(4)).float() / 255
    assert material.logits(planes).argmax(1).tolist() == [0, 1, 2, 3]


def test_the_network_sees_transformed_pixels(pictures: Make) -> None:
    material = material_of(
        pictures(), network=nn.Flatten(), normalise=lambda x: 10 * x[..., :1, :1]
    )
    assert material.logits(torch.full((2, 3, 4, 4), 0.5)).tolist() == [[5, 5, 5]] * 2


def test_what_is_trained_on(pictures: Make) -> None:
    assert material_of(pictures()).chosen().tolist() == list(range(60))
    first, other = (material_of(pictures(), limit=10, seed=seed).chosen() for seed in (0, 1))
    assert len(first) == 10
    assert (first.diff() > 0).all()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_images_at_one_size(picture: Draw, mode: str) -> None:
    planes = as_planes(picture(0, 40, 24, "RGB").convert(mode), 16)
    assert (planes.shape, planes.dtype) == ((3, 16, 16), torch.uint8)
    exact = as_planes(picture(1, 32, 32), 32)
    assert (exact.permute(1, 2, 0).numpy() == np.asarray(picture(1, 32, 32))).all()


def test_common_side(picture: Draw) -> None:
    assert common_side([picture(0, 40, 24)] * 3) == 24
    assert common_side([picture(0, 8, 8)]) == 16
    assert common_side([picture(0, 300, 200)]) == 64


def test_batches_cover_everything_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 63, 64, 65, 128, 191, 192, 193, 500):
        images = torch.zeros(count, 3, 2, 2, dtype=torch.uint8)
        labels = torch.arange(count)
        parts = list(batches(images, labels, generator, torch.device("cpu")))
        assert len(parts) == len(batch_starts(count))
        assert sorted(torch.cat([given for _, given in parts]).tolist()) == list(range(count))
        assert min(len(given) for _, given in parts) >= min(count, 64)
        assert max(len(given) for _, given in parts) < 128 + 64 + 1


def test_shifts_move_and_lose_nothing_else() -> None:
    generator, image = torch.Generator().manual_seed(0), torch.rand(1, 3, 32, 32)
    seen = set()
    for _ in range(60):
        moved = shifted(image, generator)
        assert moved.shape == image.shape
        inner = moved[..., 2:-2, 2:-2]
        places = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(inner, image[..., down : down + 28, right : right + 28])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 15
