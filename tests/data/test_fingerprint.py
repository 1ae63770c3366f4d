from __future__ import annotations

import os
import sys
import threading
import time
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from dataset_zoo import (
    LABELS,
    PIXELS,
    Items,
    N,
    cifar10,
    image_folder,
    normalise,
    pil,
    renaming,
    table,
    timm_folder,
)
from launching import run_python
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import cgd_wrap.data.leaves
from cgd_wrap.data import RawImages
from cgd_wrap.data.fingerprint import dataset_fingerprint
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.pixel_hashes import sample_fingerprint
from cgd_wrap.data.sources import readable


def build(kind: str, root: Path):
    if kind == "cifar10":
        return cifar10(root)
    if kind == "folder":
        return image_folder(root)
    if kind == "timm":
        return timm_folder(root)
    if kind == "table":
        return table()
    if kind == "tensors":
        return TensorDataset(torch.from_numpy(PIXELS.copy()), torch.tensor(LABELS))
    if kind == "pictures":
        return Items([(pil(i), LABELS[i]) for i in range(N)])
    return Subset(ConcatDataset([cifar10(root), table()]), [20, 1, 5])


KINDS = ["cifar10", "folder", "timm", "table", "tensors", "pictures", "subset"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_opened_twice(kind, tmp_path):
    first = dataset_fingerprint(build(kind, tmp_path))
    assert dataset_fingerprint(build(kind, tmp_path)) == first
    assert len(first) == 32


def test_the_same_in_another_process(tmp_path):
    """Whose sets have another order: its hashes have a seed of their own."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_fingerprint import *\n"
        "for kind in KINDS: print(dataset_fingerprint(build(kind, Path(sys.argv[2], kind))))\n"
        "print(dataset_fingerprint({'b', 'a', 'c'}))\n"
        "print(hash('a'))"
    )
    expected = [dataset_fingerprint(build(kind, tmp_path / kind)) for kind in KINDS]
    expected.append(dataset_fingerprint({"a", "b", "c"}))
    *found, hashed = run_python("-c", code, str(Path(__file__).parent), str(tmp_path)).split()
    assert found == expected
    assert int(hashed) != hash("a")


def test_pixels_and_labels_count(tmp_path):
    seen = {dataset_fingerprint(build("cifar10", tmp_path))}
    for change in ("pixel", "label", "length"):
        dataset = build("cifar10", tmp_path)
        if change == "pixel":
            dataset.data = dataset.data.copy()
            dataset.data[3, 4, 5, 1] ^= 1
        elif change == "label":
            dataset.targets[7] = 0
        else:
            dataset.data = dataset.data[:-1]
        seen.add(dataset_fingerprint(dataset))
    assert len(seen) == 4
    pictures = build("pictures", tmp_path)
    before = dataset_fingerprint(pictures)
    pictures.items[2][0].putpixel((0, 0), (1, 2, 3))
    assert dataset_fingerprint(pictures) != before
    tensors = build("tensors", tmp_path)
    before = dataset_fingerprint(tensors)
    tensors.tensors[1][0] = 2
    assert dataset_fingerprint(tensors) != before


def test_file_lists_count(tmp_path):
    for make in (image_folder, timm_folder):
        before = dataset_fingerprint(make(tmp_path))
        extra = tmp_path / "bee" / f"{make.__name__}.png"
        pil(0).save(extra)
        assert dataset_fingerprint(make(tmp_path)) != before


def test_tables_count_by_content_rows_and_files(tmp_path):
    rows = {"label": LABELS}
    seen = [dataset_fingerprint(datasets.Dataset.from_dict(rows))]
    seen.append(dataset_fingerprint(datasets.Dataset.from_dict({"label": [1, *LABELS[1:]]})))
    seen.append(dataset_fingerprint(datasets.Dataset.from_dict(rows).select([1, 0, 2])))
    seen.append(dataset_fingerprint(datasets.Dataset.from_dict(rows).select([0, 1, 2])))
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "t")
    seen.append(dataset_fingerprint(datasets.load_from_disk(tmp_path / "t")))
    assert dataset_fingerprint(datasets.load_from_disk(tmp_path / "t")) == seen[-1]
    file = next((tmp_path / "t").glob("*.arrow"))
    os.utime(file, (1, 1))
    seen.append(dataset_fingerprint(datasets.load_from_disk(tmp_path / "t")))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("kind", ["cifar10", "folder", "timm"])
def test_transforms_do_not_count(kind, tmp_path):
    dataset = build(kind, tmp_path)
    before = dataset_fingerprint(dataset)
    dataset.transform = lambda image: normalise(image) * 2
    assert dataset_fingerprint(dataset) == before
    readable(dataset)[0]
    assert dataset_fingerprint(dataset) == before


def test_formats_of_tables_do_not_count():
    plain = table()
    assert dataset_fingerprint(plain) == dataset_fingerprint(plain.with_transform(renaming))
    assert dataset_fingerprint(plain) == dataset_fingerprint(plain.with_format("torch"))


def test_attributes_can_be_left_out():
    first, second = Items([1, 2]), Items([1, 2])
    second.cache = np.zeros(3)
    assert dataset_fingerprint(first) != dataset_fingerprint(second)
    assert dataset_fingerprint([first], ignore={"cache"}) == dataset_fingerprint(
        [second], ignore={"cache"}
    )


def test_what_is_only_there_after_a_first_read_does_not_count():
    class Lazy(Items):
        @cached_property
        def table(self):
            return np.arange(len(self))

        def __getitem__(self, index):
            return super().__getitem__(int(self.table[index]))

    dataset = Lazy([1, 2])
    before = dataset_fingerprint(dataset)
    assert dataset[1] == 2
    assert "table" in vars(dataset)
    assert dataset_fingerprint(dataset) == before != dataset_fingerprint(Lazy([1, 3]))


def test_odd_objects(tmp_path):
    class Slotted:
        __slots__ = ("value",)

    def odd():
        import pandas as pd

        items = Items([1, "a", None, 2.5, b"x", {1: (2, {3})}, Path("p"), np.int8(3), 1j])
        items.itself = [items]
        items.lock, items.code, items.stream = threading.Lock(), lambda: 0, sys.stdout
        items.frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        items.generator, items.half = torch.Generator(), torch.ones(2, dtype=torch.bfloat16)
        items.objects = np.array([1, "a", None], dtype=object)
        items.slotted = Slotted()
        items.slotted.value = 3
        return items

    before = dataset_fingerprint(odd())
    assert dataset_fingerprint(odd()) == before
    changed = odd()
    changed.slotted.value = 4
    assert dataset_fingerprint(changed) != before
    changed = odd()
    changed.frame.loc[0, "b"] = "z"
    assert dataset_fingerprint(changed) != before
    changed = odd()
    changed.half[1] = 0
    assert dataset_fingerprint(changed) != before


def test_neighbours_and_types_are_kept_apart():
    values = [
        [1, 23], [12, 3], ["1", 23], [[1], 23], [1.0, 23], {"a": "bc"}, {"ab": "c"},
        np.zeros(4, np.int32), np.zeros(2, np.int64), np.zeros((2, 2), np.int32),
        torch.zeros(4, dtype=torch.int32), b"a", "a", None, {"a"}, Image.new("L", (2, 3)),
        Image.new("L", (3, 2)),
    ]  # fmt: skip
    assert len({dataset_fingerprint(value) for value in values}) == len(values)


def test_beyond_the_budget_arrays_count_by_shape(monkeypatch):
    monkeypatch.setattr(cgd_wrap.data.leaves, "MAX_BYTES", 100)
    assert dataset_fingerprint(np.zeros(101, np.uint8)) == dataset_fingerprint(
        np.ones(101, np.uint8)
    )
    assert dataset_fingerprint(np.zeros(99, np.uint8)) != dataset_fingerprint(np.ones(99, np.uint8))


def test_a_list_of_half_a_million_files_is_quick():
    samples = [(f"/data/train/n{i % 1000:08}/image_{i}.JPEG", i % 1000) for i in range(500_000)]
    dataset = Items(samples)
    start = time.process_time()
    before = dataset_fingerprint(dataset)
    assert time.process_time() - start < 1
    samples[333_333] = ("/elsewhere.JPEG", 1)
    assert dataset_fingerprint(dataset) != before


def test_sample_fingerprint(tmp_path):
    def view(kind):
        dataset = build(kind, tmp_path)
        return RawImages(dataset, SampleLayout(0, 1))

    before = sample_fingerprint(view("folder"))
    assert before == sample_fingerprint(view("timm"))
    assert before != sample_fingerprint(view("pictures"))
    folder, timm = view("folder"), view("timm")
    (tmp_path / "bee" / "04.png").write_bytes(b"")
    assert sample_fingerprint(folder) == sample_fingerprint(timm) != before
