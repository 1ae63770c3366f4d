"""Our own suspicious network: one read for CLIP and for it, whatever the user's model is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import NAMES, SIZE, Items, TintReader, pictures, quick_config, tiny_net
from torch import nn

from cgd_wrap import CGDGuard
from cgd_wrap.errors import BadSampleError
from cgd_wrap.scan.store import UnitStore

CONFIG = quick_config(suspicious_network="small", suspicious_side=16, suspicious_epochs=1)


class Counted(Items):
    """Counts the reads of each sample."""

    classes = NAMES

    def __init__(self, samples: list[Any]) -> None:
        super().__init__(samples)
        self.reads = [0] * len(samples)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return super().__getitem__(index)


class ByTint(TintReader):
    """Is known by its name, so that nothing is read to find out what it does."""

    def fingerprint(self) -> str:
        return "by tint"


def guard_of(data: Any, cache: Path | None = None, **options: Any) -> CGDGuard:
    options = {"clip": ByTint(), "config": CONFIG, "model": tiny_net()} | options
    return CGDGuard(options.pop("model"), data, cache_dir=cache, progress=False, **options)


def reads_of_a_scan(guard: CGDGuard) -> np.ndarray:
    """Reads of each sample, without those by which the guard learned the labels."""
    before = list(guard.base.reads)
    guard.scan()
    return np.subtract(guard.base.reads, before)


def test_a_scan_reads_each_sample_once_beside_its_probes() -> None:
    reads = reads_of_a_scan(guard_of(Counted(pictures(300))))
    assert np.median(reads) == 1
    assert (reads > 1).sum() < 120  # each of a few kinds of probes looks at 8 to 32 samples


def test_two_clips_share_the_read() -> None:
    guard = guard_of(Counted(pictures(300)), clip=[ByTint(), ByTint()])
    assert np.median(reads_of_a_scan(guard)) == 1


def test_copies_are_the_images_scaled_to_a_square(tmp_path: Path) -> None:
    tall = [(Image.new("RGB", (10, 40), (label * 90, 5, 7)), label) for _, label in pictures()]
    guard_of(Items(tall), tmp_path, class_names=NAMES).scan()
    store = UnitStore.open(tmp_path / "small", SIZE, _fingerprint(tmp_path / "small"))
    [(_, tensors, bad)] = store.units()
    assert not bad
    assert tensors["small"].shape == (SIZE, 3, 16, 16)
    for copy, (_, label) in zip(tensors["small"], tall, strict=True):
        assert copy[:, 3, 9].tolist() == [label * 90, 5, 7]


def _fingerprint(folder: Path) -> dict[str, Any]:
    from cgd_wrap.files import read_json

    manifest = read_json(folder / "manifest.json")
    assert manifest is not None
    kept: dict[str, Any] = manifest["fingerprint"]
    return kept


def test_the_users_model_does_not_matter() -> None:
    class Slow(nn.Module):
        """Nothing that a fresh copy of it learns shows in its logits."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.weight.expand(len(images), 3) * 1e-9

    data = Counted(pictures())
    one, other = (guard_of(data, model=model).scan() for model in (tiny_net(), Slow()))
    assert torch.equal(one.entropy_map.suspicious_nll, other.entropy_map.suspicious_nll)
    copied = guard_of(data, suspicious="copy").scan()
    assert not torch.equal(one.entropy_map.suspicious_nll, copied.entropy_map.suspicious_nll)


def test_a_finished_scan_needs_no_copies_and_lost_ones_are_made_again(tmp_path: Path) -> None:
    data = Counted(pictures(200))
    found = guard_of(data, tmp_path).scan().entropy_map.suspicious_nll
    shutil.rmtree(tmp_path / "small")
    again = guard_of(data, tmp_path)
    assert np.median(reads_of_a_scan(again)) == 0
    assert torch.equal(again.entropy_map.suspicious_nll, found)
    assert not (tmp_path / "small").exists()
    (tmp_path / "suspicious" / "00000.safetensors").write_bytes(b"damaged")
    again = guard_of(data, tmp_path)
    assert np.median(reads_of_a_scan(again)) == 1
    assert torch.equal(again.entropy_map.suspicious_nll, found)


def test_damaged_copies_are_made_again(tmp_path: Path) -> None:
    data = Counted(pictures(200))
    found = guard_of(data, tmp_path).scan().entropy_map.suspicious_nll
    shutil.rmtree(tmp_path / "suspicious")
    path = tmp_path / "small" / "00000.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    assert torch.equal(guard_of(data, tmp_path).scan().entropy_map.suspicious_nll, found)


def test_a_bad_sample_costs_itself_alone(tmp_path: Path) -> None:
    class Broken(Counted):
        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    data = Broken(pictures())
    with pytest.raises(BadSampleError, match="sample 7"):
        guard_of(data).scan()
    config = CONFIG.replace(on_bad_sample="record", max_bad_fraction=0.1)
    guard = guard_of(data, tmp_path, config=config).scan()
    assert list(guard.result.bad) == [7]
    assert int(guard.split.clean.sum()) > 50
