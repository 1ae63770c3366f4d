from __future__ import annotations

import os

import datasets
import numpy as np
import pandas as pd
import pytest
from dataset_zoo import FOLDER_ORDER, LABELS, Items, N, folder, image_folder, timm_folder
from torch.utils.data import ConcatDataset, Subset

from cgd_wrap.data.image_files import describe_files, files_of


class Listed(Items):
    """A dataset with some attributes."""

    def __init__(self, **attributes) -> None:
        super().__init__(range(N))
        vars(self).update(attributes)


def paths(root):
    return [str(path) for path in sorted(root.rglob("*.png"))]


def table(root):
    return datasets.Dataset.from_dict({"image": paths(root), "label": LABELS}).cast_column(
        "image", datasets.Image()
    )


def relative(root):
    return [os.path.relpath(path, root) for path in paths(root)]


KINDS = {
    "torchvision": image_folder,
    "timm": timm_folder,
    "a table of images": table,
    "a table of paths": lambda root: datasets.Dataset.from_dict({"file": paths(root)}),
    "pairs": lambda root: Items([(path, 0) for path in paths(root)]),
    "dicts": lambda root: Items([{"file": path, "y": 0} for path in paths(root)]),
    "names in a folder": lambda root: Listed(root=root, names=relative(root)),
    "an array of names": lambda root: Listed(root=str(root), names=np.array(relative(root))),
    "a data frame": lambda root: Listed(
        folder=root, frame=pd.DataFrame({"y": LABELS, "f": relative(root)})
    ),
    "a series": lambda root: Listed(folder=root, files=pd.Series(relative(root))),
    "a concatenation": lambda root: ConcatDataset([image_folder(root), timm_folder(root)]),
    "a wrapper": lambda root: Listed(base=image_folder(root)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_dataset_are_found(kind, tmp_path):
    dataset = KINDS[kind](folder(tmp_path))
    found = files_of(dataset)
    assert sorted(map(os.path.abspath, found)) == paths(tmp_path)
    before = describe_files(found)
    assert before.startswith(f"{N} files, ")
    os.utime(found[3], (1, 1))
    assert describe_files(found) != before == before


def test_of_a_subset_those_of_its_samples_are_found(tmp_path):
    dataset = Subset(image_folder(tmp_path), [0, 5])
    names = {os.path.basename(path) for path in files_of(dataset)}
    assert names == {f"{FOLDER_ORDER[i]:02}.png" for i in (0, 5)}


def test_parts_of_a_concatenation_may_have_no_files(tmp_path):
    both = ConcatDataset([Items(range(N)), image_folder(tmp_path)])
    names = [os.path.basename(path) for path in files_of(Subset(both, [1, N + 2, N]))]
    assert names == [f"{FOLDER_ORDER[i]:02}.png" for i in (2, 0)]


def test_one_file_that_holds_all_is_found(tmp_path):
    for name in ("data.bin", "data.npy"):
        (tmp_path / name).write_bytes(bytes(200))
    mapped = np.memmap(tmp_path / "data.npy", dtype=np.uint8, mode="r")
    dataset = Listed(path=tmp_path / "data.bin", mapped=mapped)
    assert files_of(dataset) == [str(tmp_path / "data.bin"), str(tmp_path / "data.npy")]


def test_texts_that_are_no_files_are_none(tmp_path):
    odd = Listed(words=["cat"] * N, numbers=list(range(N)), mixed=[("a", 1)] * 2 + [3] * (N - 2))
    odd.itself = [odd]
    odd.base = odd
    assert files_of(odd) == []
    assert describe_files([]).startswith("0 files, 0 bytes")


def test_embedded_images_are_left_where_they_are(tmp_path):
    from dataset_zoo import table as embedded

    assert files_of(embedded()) == []


def test_files_that_are_missing_count(tmp_path):
    found = [str(tmp_path / "a"), "nul\0"]
    before = describe_files(found)
    (tmp_path / "a").write_bytes(b"12")
    assert describe_files(found) != before
    assert describe_files(found).startswith("2 files, 2 bytes")
