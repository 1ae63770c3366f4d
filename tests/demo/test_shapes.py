from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from cgd_wrap.demo.painting import CLASSES
from cgd_wrap.demo.shapes import RESERVED_SEEDS, ShapesDataset


@pytest.fixture(scope="module")
def shapes() -> ShapesDataset:
    return ShapesDataset(1000, seed=0)


def pixels(data: ShapesDataset) -> list[bytes]:
    return [data[i][0].tobytes() for i in range(len(data))]


def test_items_are_rgb_pictures_with_labels(shapes):
    image, label = shapes[3]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert label == shapes.targets[3]
    assert isinstance(label, int)
    assert len(shapes) == len(shapes.targets) == 1000
    with pytest.raises(IndexError):
        shapes[1000]


def test_ten_distinct_classes(shapes):
    assert shapes.classes == list(CLASSES)
    assert len(set(shapes.classes)) == 10


def test_the_seed_decides_everything(shapes):
    again = ShapesDataset(60, seed=0)
    assert again.targets == shapes.targets[:60]
    assert pixels(again) == pixels(shapes)[:60]
    assert [again.caption(i) for i in range(60)] == [shapes.caption(i) for i in range(60)]


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    ShapesDataset(5, seed=1)
    assert (torch.rand(1), np.random.rand()) == before


def test_seeds_share_no_picture(shapes):
    others = [ShapesDataset(300, seed) for seed in (1, 2, *RESERVED_SEEDS[:2])]
    every = pixels(shapes) + [picture for data in others for picture in pixels(data)]
    assert len(set(every)) == len(every)


def test_classes_are_balanced(shapes):
    counts = np.bincount(shapes.targets, minlength=10)
    assert counts.min() > 70
    assert counts.max() < 130


def test_transform_sees_the_picture():
    data = ShapesDataset(2, seed=4, transform=lambda image: image.size)
    assert data[0] == ((32, 32), data.targets[0])


def test_it_survives_pickling():
    data = ShapesDataset(3, seed=4)
    assert pixels(pickle.loads(pickle.dumps(data))) == pixels(data)


def test_captions_name_class_and_colour(shapes):
    for i in range(100):
        assert f" {shapes.classes[shapes.targets[i]]} in " in shapes.caption(i)
        assert f" {shapes.scenes[i].colour} " in shapes.caption(i)


def test_warmth_is_continuous_and_shows_in_the_pixels(shapes):
    warmth = np.array([scene.warmth for scene in shapes.scenes])
    assert len(np.unique(warmth)) > 950
    usual = np.stack([np.median(np.asarray(shapes[i][0]), axis=(0, 1)) for i in range(1000)])
    assert np.corrcoef(warmth, usual[:, 0] - usual[:, 2])[0, 1] > 0.7


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_impossible_arguments_are_named(size, seed):
    with pytest.raises(ValueError, match=f"size={size}, seed={seed}"):
        ShapesDataset(size, seed)
