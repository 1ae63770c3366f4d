"""A scan by an open_clip model: how its pixels are made, and that caches keep the ways apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_clips import NAMES
from tiny_data import quick_config, tiny_net
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from cgd_wrap import CGDGuard
from cgd_wrap.clip import OpenClipZeroShot
from cgd_wrap.errors import CacheMismatchError
from cgd_wrap.scan.store import UnitStore

COUNT, SIZES = 24, [(90, 66), (66, 90), (20, 20)]  # two are shrunk to 32 pixels, one is enlarged
PLAIN = quick_config(suspicious_network="small", suspicious_side=16, suspicious_epochs=1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files, a folder a class."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for index in range(COUNT):
        path = root / "abc"[index % 3] / f"{index:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize(SIZES[index % 4 % 3]).save(path, quality=90)
    return root


def scanned(root: Path, clip: Path, cache: Path, *, workers: int = 0, **changes: Any) -> Tensor:
    """The features that a scan has left in its cache."""
    CGDGuard(
        tiny_net(), ImageFolder(str(root), ToTensor()), NAMES, clip=f"local-dir:{clip}",
        config=PLAIN.replace(**changes), cache_dir=cache, num_workers=workers, progress=False,
    ).scan()  # fmt: skip
    return torch.cat([tensors["features"] for _, tensors, _ in units(cache / "clip")])


def units(folder: Path) -> Sequence[Any]:
    from cgd_wrap.files import read_json

    fingerprint = read_json(folder / "manifest.json")["fingerprint"]
    known = {k: v for k, v in fingerprint.items() if k not in ("rows", "unit_size")}
    return list(UnitStore.open(folder, fingerprint["rows"], known).units())


def own_features(root: Path, clip: Path) -> Tensor:
    """The features of the model's own preprocessing."""
    model = OpenClipZeroShot(f"local-dir:{clip}", NAMES)
    images = [model.preprocess(image) for image, _ in ImageFolder(str(root))]
    padded = torch.stack([*images, *images[-1:] * 8])  # the scan fills batches up, too
    return model.features(padded)[:COUNT].half()


def test_exact_scans_have_the_models_own_features(photographs, folder, tmp_path):
    found = scanned(photographs, folder, tmp_path, clip_resize="exact")
    assert torch.equal(found, own_features(photographs, folder))


def test_fast_scans_have_nearly_the_same_with_any_number_of_workers(photographs, folder, tmp_path):
    found = scanned(photographs, folder, tmp_path / "a")
    assert torch.equal(scanned(photographs, folder, tmp_path / "b", workers=2), found)
    own = own_features(photographs, folder)
    torch.testing.assert_close(found, own, rtol=0, atol=2e-3)
    same = (found == own).all(dim=1)
    sizes = [image.size for image, _ in ImageFolder(str(photographs))]
    assert all(same[i] for i, size in enumerate(sizes) if size == (20, 20))
    assert not same.all()


@pytest.mark.parametrize(
    ("before", "now", "field"),
    [
        ({"clip_resize": "exact"}, {}, "pixels"),
        ({}, {"clip_resize": "exact"}, "pixels"),
        ({}, {"jpeg_edge": 33}, "jpeg_edge"),
        ({"jpeg_edge": 33}, {"jpeg_edge": 40}, "jpeg_edge"),
    ],
)
def test_a_cache_of_other_pixels_is_refused_by_name(
    before, now, field, photographs, folder, tmp_path
):
    first = scanned(photographs, folder, tmp_path, **before)
    with pytest.raises(CacheMismatchError) as caught:
        scanned(photographs, folder, tmp_path, **now)
    assert set(caught.value.fields) == {field}
    assert torch.equal(scanned(photographs, folder, tmp_path, **before), first)


def test_reduced_jpegs_change_clips_pixels_and_the_small_copies(photographs, folder, tmp_path):
    whole = scanned(photographs, folder, tmp_path / "a")
    reduced = scanned(photographs, folder, tmp_path / "b", jpeg_edge=33)
    differ = (whole != reduced).any(dim=1)
    sizes = [image.size for image, _ in ImageFolder(str(photographs))]
    assert differ.tolist() == [size != (20, 20) for size in sizes]
    small, halved = (units(tmp_path / name / "small")[0][1]["small"].int() for name in "ab")
    assert 0 < (small - halved).abs().max() < 20


def test_an_edge_below_clips_own_is_refused(photographs, folder, tmp_path):
    with pytest.raises(ValueError, match=r"jpeg_edge=31 .* 32 pixels .* 64 is nearer"):
        scanned(photographs, folder, tmp_path, jpeg_edge=31)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_costs_itself_alone(workers, photographs, folder, tmp_path):
    import shutil

    copy = shutil.copytree(photographs, tmp_path / "photographs")
    whole = scanned(copy, folder, tmp_path / "a")
    bad = sorted(copy.rglob("*.jpg"))[5]
    bad.write_bytes(bad.read_bytes()[:300])
    found = scanned(copy, folder, tmp_path / "b", workers=workers, on_bad_sample="record",
                    max_bad_fraction=0.5)  # fmt: skip
    [(_, _, reasons)] = units(tmp_path / "b" / "clip")
    assert [*reasons] == [5]
    assert not found[5].any()
    others = [i for i in range(COUNT) if i != 5]
    torch.testing.assert_close(found[others], whole[others], rtol=0, atol=1e-3)
