from __future__ import annotations

import shutil

import pytest
from PIL import Image

from cgd_wrap.backdoorbench import clean_images, image_transform
from cgd_wrap.data.known_classes import known_classes


def test_gtsrb_follows_its_tables(tmp_path):
    def table(folder, name, rows):
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        for file, label in rows:
            Image.new("RGB", (20 + label, 30), (label, 0, 0)).save(folder / file)
            lines.append(f"{file};0;0;0;0;0;0;{label}")
        (folder / name).write_text("\n".join(lines) + "\n")

    for k in range(43):
        table(tmp_path / "Train" / f"{k:05d}", f"GT-{k:05d}.csv", [("b.ppm", k), ("a.ppm", k)])
    table(tmp_path / "Test", "GT-final_test.csv", [("00001.ppm", 7), ("00000.ppm", 3)])
    train, test = clean_images("gtsrb", tmp_path)
    assert train.targets == [k for k in range(43) for _ in range(2)]
    assert test.targets == [7, 3]
    assert [test[i][0].getpixel((0, 0))[0] for i in range(2)] == [7, 3]
    tensor = image_transform("gtsrb", (32, 32), augment=False)(test[0][0])
    assert tensor.shape == (3, 32, 32)
    assert float(tensor.max()) == pytest.approx(7 / 255)


def test_tiny_imagenet_follows_its_folders(tmp_path):
    wnids = known_classes("tiny").keys
    for part in ("train", "val"):
        for label, wnid in enumerate(wnids):
            path = tmp_path / "tiny-imagenet-200" / part / wnid / "images" / f"{wnid}_0.JPEG"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (label, label, label)).save(path)
    train, test = clean_images("tiny", tmp_path)
    assert train.targets == test.targets == list(range(200))
    assert abs(train[150][0].getpixel((0, 0))[0] - 150) <= 2
    shutil.rmtree(tmp_path / "tiny-imagenet-200" / "val" / wnids[5])
    with pytest.raises(FileNotFoundError, match=wnids[5]):
        clean_images("tiny", tmp_path)
