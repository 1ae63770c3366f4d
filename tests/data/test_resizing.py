"""Resizing bytes: enlarged to Pillow's very bytes, shrunk to nearly the same in less time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from cgd_wrap.data.resizing import (
    FILTERS,
    centre_of,
    enlarged_exactly,
    pillow_agrees,
    resized_quickly,
    size_by_shorter_edge,
)

SIDES = st.integers(1, 40)


def random_image(height: int, width: int, *, extreme: bool = False) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.where(values > 127, 255, 0).astype(np.uint8) if extreme else values)


def as_bytes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_pillow(image: Image.Image, size: tuple[int, int], kind: str) -> torch.Tensor:
    return as_bytes(image.resize(size[::-1], getattr(Image.Resampling, kind.upper())))


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 80), st.integers(0, 80), st.sampled_from([*FILTERS]))
def test_enlarging_gives_pillows_bytes(height, width, taller, wider, kind):
    images = [random_image(height, width, extreme=extreme) for extreme in (False, True)]
    size = (height + taller, width + wider)
    enlarged = enlarged_exactly(torch.stack([as_bytes(one) for one in images]), size, kind)
    assert torch.equal(enlarged, torch.stack([by_pillow(one, size, kind) for one in images]))


@pytest.mark.parametrize("kind", FILTERS)
def test_a_pillow_that_rounds_otherwise_is_noticed(kind, monkeypatch):
    assert pillow_agrees(kind)
    resize = Image.Image.resize

    def off_by_one(image, size, resample):
        return resize(image, size, resample).point(lambda value: value ^ 1)

    monkeypatch.setattr(Image.Image, "resize", off_by_one)
    assert not pillow_agrees.__wrapped__(kind)


def test_more_images_than_are_enlarged_at_a_time():
    images = torch.randint(0, 256, (70, 3, 4, 4), dtype=torch.uint8)
    alone = torch.cat([enlarged_exactly(one[None], (9, 9), "bicubic") for one in images])
    assert torch.equal(enlarged_exactly(images, (9, 9), "bicubic"), alone)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (231, 1000)])
def test_shrinking_quickly_is_off_by_one_in_few_values(size, kind):
    image, scaled = random_image(*size), size_by_shorter_edge(*size, 224)
    found, exact = resized_quickly(image, scaled, kind), by_pillow(image, scaled, kind)
    assert found.dtype == torch.uint8
    off = (found.int() - exact.int()).abs()
    assert off.max() <= 1
    assert 0 < off.float().mean() < 0.01


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_sizes_and_crops_are_torchvisions(height, width, edge):
    image = Image.new("L", (width, height))
    scaled = size_by_shorter_edge(height, width, edge)
    assert Resize(edge)(image).size == scaled[::-1]
    values = torch.arange(scaled[0] * scaled[1]).reshape(scaled)
    assert torch.equal(centre_of(values, (edge, edge)), CenterCrop(edge)(values))
