from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from cgd_wrap.demo.outlines import outlines
from cgd_wrap.demo.painting import CLASSES, tint
from cgd_wrap.demo.shapes import RESERVED_SEEDS, ShapesDataset
from cgd_wrap.models.small_resnet import small_resnet


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


def test_tint_is_neutral_at_zero_and_warms_above():
    image = np.asarray(ShapesDataset(1, seed=5)[0][0])
    np.testing.assert_array_equal(tint(image, 0.0), image)
    warm = tint(image, 0.8).astype(int)
    assert (warm[..., 0] >= image[..., 0]).all()
    assert (warm[..., 2] <= image[..., 2]).all()


@pytest.mark.parametrize("shape", CLASSES)
def test_outlines_fit_the_unit_circle(shape):
    filled = outlines(shape)[0]
    assert np.linalg.norm(filled, axis=1).max() <= 1.15


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_impossible_arguments_are_named(size, seed):
    with pytest.raises(ValueError, match=f"size={size}, seed={seed}"):
        ShapesDataset(size, seed)


@pytest.mark.parametrize("num_classes", [1, 10])
def test_small_resnet_has_the_stated_size_and_shape(num_classes):
    model = small_resnet(num_classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 0.40e6 < count < 0.42e6
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)


def test_small_resnet_refuses_no_classes():
    with pytest.raises(ValueError, match="num_classes=0"):
        small_resnet(0)


def test_a_narrow_network_learns_the_shapes(shapes):
    """Far above chance after six passes over a few pictures; the demo trains much longer."""
    images = torch.from_numpy(np.stack([np.asarray(shapes[i][0]) for i in range(1000)]))
    images, labels = images.permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor(shapes.targets)
    torch.manual_seed(0)
    model = small_resnet(10, widths=(8, 16, 32, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for batch in torch.arange(800).repeat(6).split(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    assert (model(images[800:]).argmax(1) == labels[800:]).float().mean() > 0.4
