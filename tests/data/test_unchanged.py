from __future__ import annotations

import random

import pytest
import torch
from dataset_zoo import CLASSES, LABELS, PIXELS, Items, N, augment, image_folder, normalise, pil

from cgd_wrap.data import RawImages
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.unchanged import Seen
from cgd_wrap.errors import DatasetError

LAYOUT = SampleLayout(0, 1)


class Pictures(Items):
    """Pictures behind a transform, in lists that can be changed in place."""

    def __init__(self, transform=normalise) -> None:
        super().__init__([[pil(i), LABELS[i]] for i in range(N)])
        self.transform = transform

    def __getitem__(self, index):
        image, label = self.items[index]
        return self.transform(image) if self.transform else image, label


def seen(dataset) -> Seen:
    labels = read_labels(dataset, LAYOUT, len(CLASSES))
    return Seen.of(labels, RawImages(dataset, LAYOUT))


def check(known: Seen, dataset) -> None:
    known.check(dataset, LAYOUT, lambda: RawImages(dataset, LAYOUT))


def shuffle(items) -> None:
    random.Random(0).shuffle(items)


def relabel(items) -> None:
    for item in items:
        item[1] = (item[1] + 1) % 3


def repaint(items) -> None:
    for item in items:
        item[0] = item[0].rotate(90)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items.append(items[0]), r"has 13 samples now and had 12 .* scan again"),
        (lambda items: items.pop(), "has 11 samples now and had 12"),
        (shuffle, r"the labels of \d+ of 12 samples .* reordered or changed"),
        (relabel, r"the labels of 12 of 12 samples .*\(samples \[0, 1, 2"),
        (repaint, r"the images of 12 of 12 samples .* reordered or changed"),
    ],
)
def test_a_list_that_changed_in_place_is_refused(change, message):
    dataset = Pictures()
    known = seen(dataset)
    check(known, dataset)
    change(dataset.items)
    with pytest.raises(DatasetError, match=message):
        check(known, dataset)


@pytest.mark.parametrize("change", ["grown", "reordered"])
def test_a_folder_that_changed_is_refused(change, tmp_path):
    dataset = image_folder(tmp_path)
    known = seen(dataset)
    check(known, dataset)
    if change == "grown":
        dataset.samples.append(dataset.samples[0])
    else:
        dataset.samples.reverse()
    with pytest.raises(DatasetError, match="make a new guard, and scan again"):
        check(known, dataset)


@pytest.mark.parametrize("transform", [augment, None, lambda image: normalise(image) * 0])
def test_another_transform_is_no_change(transform):
    dataset = Pictures()
    known = seen(dataset)
    dataset.transform = transform
    check(known, dataset)


def test_a_transform_that_hides_the_raw_images_is_no_change():
    class Inseparable(Items):
        augmented = False

        def __getitem__(self, index):
            image = torch.from_numpy(PIXELS[index]).permute(2, 0, 1).float() / 255
            return image + torch.rand(1) if self.augmented else image, LABELS[index]

    dataset = Inseparable(range(N))
    known = seen(dataset)
    dataset.augmented = True
    check(known, dataset)


def test_the_users_random_stream_is_kept():
    dataset = Pictures(augment)
    known = seen(dataset)
    state = torch.get_rng_state()
    check(known, dataset)
    assert torch.equal(torch.get_rng_state(), state)
