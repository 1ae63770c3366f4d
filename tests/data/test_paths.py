from __future__ import annotations

import datasets
from dataset_zoo import (
    image_folder,
    pil,
    table,
    timm_folder,
)
from torch.utils.data import ConcatDataset, Subset

from cgd_wrap.data.paths import ImagePaths, image_path


def test_paths(tmp_path):
    files, timm = image_folder(tmp_path), timm_folder(tmp_path)
    expected = files.samples[3][0]
    assert image_path(files, 3) == expected
    assert image_path(timm, 3) == expected
    assert image_path(Subset(ConcatDataset([table(), timm]), [15]), 0) == expected
    assert image_path(table(), 0) is None
    assert image_path([(pil(0), 0)], 0) is None
    assert image_path(files, 99) is None
    stored = datasets.Dataset.from_dict({"image": [expected]}).cast_column(
        "image", datasets.Image()
    )
    assert image_path(stored, 0) == expected


def test_paths_of_a_table_follow_its_order_and_are_found_once():
    names = [f"{number}.png" for number in range(6)]
    images = datasets.Dataset.from_dict({"image": names}).cast_column("image", datasets.Image())
    paths = ImagePaths(ConcatDataset([images, images.select([4, 1]), [(pil(0), 0)]]))
    assert [paths.of(index) for index in range(10)] == [*names, "4.png", "1.png", None, None]
