"""CLIP's preprocessing in two steps: the model's own bits, or nearly, and whole where unknown."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import transforms

from cgd_wrap.clip.loading import RGBFirst
from cgd_wrap.clip.preprocessing import in_two_steps
from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.views import FromRaw

SIDE = 48
ENLARGED, SHRUNK, LONG = (32, 30), (100, 75), (9, 40)  # width, height
MODES = {"shortest": "bicubic", "squash": "bilinear"}


def own(mode: str = "shortest", interpolation: str | None = None, side: int = SIDE) -> RGBFirst:
    return RGBFirst(
        image_transform(
            side, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize_mode=mode,
            interpolation=interpolation or MODES.get(mode),
        )
    )  # fmt: skip


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("mode", [*MODES, "longest"])
@pytest.mark.parametrize("size", [ENLARGED, SHRUNK, LONG, (SIDE, SIDE)])
def test_two_steps_give_the_models_own_bits(mode, size):
    steps, image = in_two_steps(own(mode)), picture(size)
    values = steps.in_worker(image)
    assert values.dtype == torch.uint8
    assert torch.equal(steps.on_device(values[None])[0], own(mode)(image))
    assert not steps.made_by


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_fast_way_enlarges_exactly_and_is_off_by_one_where_it_shrinks(mode, interpolation):
    steps, exact = in_two_steps(own(mode, interpolation), fast=True), own(mode, interpolation)
    assert steps.edge == SIDE
    assert steps.made_by
    for size in (ENLARGED, (SIDE, SIDE)):
        values = steps.in_worker(picture(size))
        assert torch.equal(steps.on_device(values[None])[0], exact(picture(size)))
    for size in (SHRUNK, SHRUNK[::-1], (301, 200)):
        values = steps.in_worker(picture(size))
        assert values.is_contiguous()
        whole = torch.stack([exact(picture(size))])
        off = (steps.on_device(values[None]) - whole).abs() * torch.tensor(
            [0.2, 0.3, 0.4]
        ).view(1, 3, 1, 1) * 255  # fmt: skip
        assert off.max() < 1.01
        assert (off > 0.5).float().mean() < 0.01


@pytest.mark.parametrize("transform", [
    lambda image: torch.ones(3, 2, 2),
    transforms.Compose([transforms.ToTensor()]),
])  # fmt: skip
def test_an_unknown_preprocessing_stays_whole(transform):
    whole = RGBFirst(transform)
    steps = in_two_steps(whole, fast=True)
    assert steps.in_worker is whole
    assert (steps.edge, steps.made_by) == (None, {})
    values = torch.rand(1, 3, 2, 2)
    assert steps.on_device(values) is values


NORMALISE = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
BICUBIC = transforms.InterpolationMode.BICUBIC


@pytest.mark.parametrize("first", [
    [transforms.Resize(SIDE, transforms.InterpolationMode.LANCZOS), transforms.CenterCrop(SIDE)],
    [transforms.Resize(SIDE + 8, BICUBIC), transforms.CenterCrop(SIDE)],
    [transforms.Resize(SIDE, BICUBIC, max_size=60), transforms.CenterCrop(SIDE)],
    [transforms.Resize(SIDE, BICUBIC), transforms.CenterCrop(SIDE), transforms.Grayscale(3)],
    [transforms.CenterCrop(SIDE)],
])  # fmt: skip
def test_an_unknown_resize_is_the_models_own(first):
    whole = RGBFirst(transforms.Compose([*first, *NORMALISE]))
    steps = in_two_steps(whole, fast=True, device="cuda")
    for size in (ENLARGED, SHRUNK):
        values = steps.in_worker(picture(size))
        assert torch.equal(steps.on_device(values[None])[0], whole(picture(size)))
    assert not steps.made_by


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("sizes", [[ENLARGED], [ENLARGED, (20, 24), SHRUNK, LONG, (SIDE, SIDE)]])
def test_a_gpu_enlarges_equal_images_and_a_worker_those_that_differ(mode, workers, sizes):
    """The second step is done on the CPU here; it is the same whole numbers on a GPU."""
    from cgd_wrap.data.workers import Workers

    images = [picture(sizes[i % len(sizes)], seed=i) for i in range(6)]
    steps = in_two_steps(own(mode), device="cuda")
    parts = []

    class Taken:
        def add(self, part):
            parts.append(part)

        def finish(self):
            pass

    view = FromRaw(images, [steps.in_worker])
    SampleReader(view, Workers(workers)).read_parts([range(6)], lambda job: Taken())
    [part] = parts
    assert part.indices == [*range(6)]
    [values] = part.images
    assert tuple(values.shape[2:]) == (ENLARGED[::-1] if len(sizes) == 1 else (SIDE, SIDE))
    assert torch.equal(steps.on_device(values), torch.stack([own(mode)(one) for one in images]))


def test_steps_can_be_sent_to_a_worker():
    steps = in_two_steps(own(), fast=True)
    again = pickle.loads(pickle.dumps(steps))
    assert torch.equal(again.in_worker(picture(SHRUNK)), steps.in_worker(picture(SHRUNK)))
