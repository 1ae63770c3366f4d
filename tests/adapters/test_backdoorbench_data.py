from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from cgd_wrap.backdoorbench import build_network, clean_images, image_transform
from cgd_wrap.data.known_classes import known_classes


def test_preact_resnet18_has_the_checkpoints_names_and_size():
    network = build_network("preactresnet18", 10)
    names = set(network.state_dict())
    assert {"conv1.weight", "layer1.0.bn1.weight", "layer4.1.conv2.weight"} <= names
    assert {"layer2.0.shortcut.0.weight", "linear.weight", "linear.bias"} <= names
    assert "layer1.0.shortcut.0.weight" not in names
    assert sum(p.numel() for p in network.parameters()) == 11_171_146
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vision_transformers_hold_their_resize_first():
    assert all(name.startswith("1.") for name in build_network("vit_b_16", 10).state_dict())


def test_unknown_networks_and_foreign_weights_are_refused():
    with pytest.raises(ValueError, match="no network 'my_net' is known"):
        build_network("my_net", 10)
    with pytest.raises(ValueError, match="these are not the weights of a squeezenet1_0"):
        build_network("squeezenet1_0", 10, {"conv1.weight": torch.zeros(1)})


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
