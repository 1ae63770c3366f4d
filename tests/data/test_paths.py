from __future__ import annotations

import datasets
from dataset_zoo import (
    image_folder,
    pil,
    table,
    timm_folder,
)
from torch.utils.data import ConcatDataset, Subset

from cgd_wrap.data.paths import image_path


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
