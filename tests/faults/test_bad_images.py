"""Files that can't be read: named before any training, or left out of all that follows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_pictures import NAMES, bad_files, delete_the_missing, odd_files, write_folder
from guarded_run import ByColour, network
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.train.tags import is_tagged, tagged_index

TRANSFORM = v2.Compose([v2.Resize((24, 24)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
CONFIG = CGDConfig(
    suspicious_epochs=1, suspicious_batch_size=32, suspicious_side=16, allow_missing_classes=True
)
RECORD = CONFIG.replace(on_bad_sample="record", max_bad_fraction=0.2)


class FolderList:
    """A user's own dataset: its labels can't be had without the images."""

    classes = NAMES

    def __init__(self, root: Path) -> None:
        self.paths = sorted(str(path) for path in root.rglob("*.*"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.paths[index]
        with Image.open(path) as image:
            return TRANSFORM(image.convert("RGB")), NAMES.index(Path(path).parent.name)


def image_folder(root: Path) -> Any:
    from torchvision.datasets import ImageFolder

    return ImageFolder(root, TRANSFORM)


def timm_folder(root: Path) -> Any:
    from timm.data import create_dataset

    dataset = create_dataset("", root)
    dataset.transform = TRANSFORM
    return dataset


KINDS = {"ImageFolder": image_folder, "timm": timm_folder, "own": FolderList}


class Resized(ByColour):
    """Reads the images at one size, as CLIP does."""

    preprocess = staticmethod(TRANSFORM)


def files_of(dataset: Any) -> list[str]:
    """Place of each sample's file in the folder."""
    if hasattr(dataset, "reader"):
        paths = dataset.reader.filenames(absolute=True)
    else:
        paths = getattr(dataset, "paths", None) or [path for path, _ in dataset.samples]
    return ["/".join(Path(path).parts[-2:]) for path in paths]


def guard_of(kind: str, root: Path, config: CGDConfig, **options: Any) -> CGDGuard:
    dataset = KINDS[kind](write_folder(root))
    delete_the_missing(root)
    return CGDGuard(network(), dataset, clip=Resized(), config=config, progress=False, **options)


@pytest.mark.parametrize("kind", ["ImageFolder", "timm"])
def test_labels_are_read_without_the_images(tmp_path: Path, kind: str) -> None:
    guard = guard_of(kind, tmp_path, CONFIG)
    expected = [NAMES.index(place.split("/")[0]) for place in files_of(guard.base)]
    assert guard.targets.tolist() == expected


@pytest.mark.parametrize("kind", ["ImageFolder", "timm"])
def test_raise_names_index_and_path_before_any_training(tmp_path: Path, kind: str) -> None:
    guard = guard_of(kind, tmp_path / "images", CONFIG, cache_dir=tmp_path / "cache")
    with pytest.raises(BadSampleError) as caught:
        guard.scan()
    places = files_of(guard.base)
    first = min(places.index(place) for place in bad_files())
    assert caught.value.index == first
    assert caught.value.path is not None
    assert caught.value.path.endswith(places[first])
    assert caught.value.reason == bad_files()[places[first]][1]
    for part in (f"sample {first} ", places[first], "on_bad_sample"):
        assert part in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_raise_names_an_own_dataset_s_bad_sample_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"sample 0 .*00 first\.jpg.*\[empty\]"):
        guard_of("own", tmp_path, CONFIG)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves its files open
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_record_keeps_bad_samples_out(tmp_path: Path, kind: str, given: bool) -> None:
    suspicious = network() if given else None
    guard = guard_of(kind, tmp_path / "images", RECORD, suspicious=suspicious).scan()
    places = files_of(guard.base)
    expected = {places.index(place): reason for place, (_, reason) in bad_files().items()}
    assert {index: why[0] for index, why in guard.result.bad.items()} == expected
    assert all(
        Path(str(why[2])).parts[-2:] == Path(places[i]).parts for i, why in guard.result.bad.items()
    )

    bad = sorted(expected)
    for part in (guard.split.clean, guard.split.triggered, guard.split.mixed):
        assert not bool(part[bad].any())
    ranks = guard.entropy_map.clip_rank
    assert bool(ranks[bad].isnan().all())
    assert int(ranks.isnan().sum()) == len(bad)
    for place in odd_files():
        assert guard.split.names()[places.index(place)] != "unreadable"

    sampler, view = guard.sampler(), guard.balanced_view
    drawn = {index for _ in range(3) for index in sampler}
    assert drawn.isdisjoint(bad)
    assert set(view.indices.tolist()).isdisjoint(bad)
    loader, criterion = guard.protect(DataLoader(guard.base, batch_size=16))
    for images, targets in loader:
        assert bool(is_tagged(targets).all())
        assert set(tagged_index(targets).tolist()).isdisjoint(bad)
        assert bool(criterion(network()(images), targets).isfinite())


def test_the_report_lists_bad_samples_with_their_reason(tmp_path: Path) -> None:
    guard = guard_of("ImageFolder", tmp_path / "images", RECORD, suspicious=network()).scan()
    files = guard.report(tmp_path / "report")
    bad = guard.result.bad
    with files["samples"].open() as file:
        rows = list(csv.DictReader(file))
    assert {int(r["index"]): r["reason"] for r in rows if r["reason"]} == {
        index: why[0] for index, why in bad.items()
    }
    assert all((r["split"] == "unreadable") == bool(r["reason"]) for r in rows)
    summary = json.loads(files["summary"].read_text())
    assert summary["bad"] == {str(index): list(why) for index, why in bad.items()}
    page = files["page"].read_text()
    assert "Unusable samples" in page
    for place, (_, reason) in bad_files().items():
        assert place in page
        assert reason in page


def test_saving_keeps_the_reasons(tmp_path: Path) -> None:
    guard = guard_of("ImageFolder", tmp_path / "images", RECORD, suspicious=network()).scan()
    guard.save(tmp_path / "saved")
    again = CGDGuard.load(tmp_path / "saved", network(), guard.base, clip=Resized())
    assert dict(again.result.bad) == dict(guard.result.bad)


def test_more_than_the_allowed_share_is_an_error(tmp_path: Path) -> None:
    few = RECORD.replace(max_bad_fraction=0.05)
    guard = guard_of("ImageFolder", tmp_path / "images", few, cache_dir=tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"7 samples can't be used.*max_bad_fraction"):
        guard.scan()
    assert not list((tmp_path / "cache").rglob("run-*"))


def test_deep_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    guard = guard_of("timm", tmp_path, RECORD)
    raw = guard.subject.raw_view()[files_of(guard.base).index("cat/deep.png")]
    values = torch.tensor(list(raw.convert("L").tobytes())).float()
    assert 100 < float(values.mean()) < 155
    assert float((values == 255).float().mean()) < 0.05
