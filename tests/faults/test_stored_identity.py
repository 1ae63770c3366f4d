"""A stored pass belongs to what computed it, and a scan to the data that it saw."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_data import NAMES, Items, TintReader, as_tensor, pictures, quick_config, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import cgd_wrap.data.identity
from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.errors import CacheMismatchError, DatasetError

PICTURES = pictures(60)
FILES = pictures(120)  # more than the 64 samples that are probed
CONFIG = quick_config(suspicious_epochs=1)


class Counting(Dataset[Any]):
    """Counts and caches what is read."""

    def __init__(self) -> None:
        self.items, self.cache, self.reads = list(PICTURES), {}, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if index not in self.cache:
            image, label = self.items[index]
            self.cache[index] = as_tensor(image), label
        return self.cache[index]


def guard_of(dataset: Any = None, model: Any = None, **options: Any) -> CGDGuard:
    options = {"clip": TintReader(), "config": CONFIG, "progress": False} | options
    dataset = Counting() if dataset is None else dataset
    return CGDGuard(model or tiny_net(), dataset, NAMES, **options)


def refused(match: str, **options: Any) -> CacheMismatchError:
    with pytest.raises(CacheMismatchError, match=match) as caught:
        guard_of(**options).scan()
    return caught.value


def times_of(cache: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}


@pytest.mark.parametrize("suspicious", [None, tiny_net()], ids=["trained", "given"])
def test_reading_is_no_change(tmp_path: Path, suspicious: Any) -> None:
    """Row 50: a second scan, and a scan of a fresh or a read dataset, use all that is stored."""
    options = {"cache_dir": tmp_path, "suspicious": suspicious}
    guard = guard_of(**options).scan()
    stored = times_of(tmp_path)
    for again in (guard, guard_of(**options), guard_of(guard.base, **options)):
        assert torch.equal(again.scan().entropy_map.clip_nll, guard.entropy_map.clip_nll)
    assert times_of(tmp_path) == stored


def test_a_change_beside_a_counter_is_refused(tmp_path: Path) -> None:
    """Rows 19 and 50: what reading changes hides no other change."""
    guard_of(cache_dir=tmp_path).scan()
    other = Counting()
    other.items[5] = (other.items[6][0], other.items[5][1])
    error = refused(r"dataset\.items", dataset=other, cache_dir=tmp_path)
    assert "dataset.reads" not in error.fields


class Judge:
    """A zero-shot classifier that is loaded late and counts; its settings are attributes."""

    def __init__(self, factor: float = 20.0, preprocess: Callable[..., Any] | None = None) -> None:
        self.factor, self.calls, self.loaded = factor, 0, None
        if preprocess is not None:
            self.preprocess = preprocess

    def logits(self, images: Tensor) -> Tensor:
        self.loaded = torch.ones(3) if self.loaded is None else self.loaded
        self.calls += 1
        return self.factor * images.mean(dim=(2, 3)) * self.loaded


class OtherJudge(Judge):
    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images.flip(3))


class ModuleJudge(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def logits(self, images: Tensor) -> Tensor:
        return 20 * self.activation(images.mean(dim=(2, 3)))


class NamedJudge(Judge):
    def fingerprint(self) -> str:
        return "the same"


def brighter(by: float) -> Callable[[Image.Image], Tensor]:
    return lambda image: as_tensor(image) * by


OTHER_CLIPS = {
    "a setting": (Judge(), Judge(10.0), r"zero_shot\.factor: '20.0' -> '10.0'"),
    "logits": (Judge(), OtherJudge(), "zero_shot: "),
    "preprocess": (Judge(), Judge(preprocess=as_tensor), r"zero_shot\.preprocess: "),
    "a closure": (
        Judge(preprocess=brighter(1.0)), Judge(preprocess=brighter(0.5)),
        r"zero_shot\.preprocess\.by: '1.0' -> '0.5'",
    ),
    "a layer": (ModuleJudge(nn.ReLU()), ModuleJudge(nn.Tanh()), r"zero_shot\.activation: "),
    "a closure beside a name": (
        NamedJudge(preprocess=brighter(1.0)), NamedJudge(preprocess=brighter(0.5)),
        r"zero_shot\.preprocess\.by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_CLIPS)
def test_another_zero_shot_function(tmp_path: Path, kind: str) -> None:
    """Row 50: another preprocess, closure or setting of a zero-shot object is named."""
    one, other, message = OTHER_CLIPS[kind]
    guard_of(clip=one, cache_dir=tmp_path).scan()
    guard_of(clip=one, cache_dir=tmp_path).scan()  # it has been used by now
    refused(message, clip=other, cache_dir=tmp_path)


@pytest.mark.parametrize("used_first", [False, True])
def test_a_late_loaded_classifier_is_itself(tmp_path: Path, used_first: bool) -> None:
    """Row 50: loading late and counting are no other classifier, in either order."""
    fresh, used = Judge(), Judge()
    used.logits(torch.rand(2, 3, 8, 8))
    for clip in (used, fresh) if used_first else (fresh, used):
        guard_of(clip=clip, cache_dir=tmp_path).scan()


def net_with(activation: nn.Module) -> nn.Sequential:
    net = tiny_net()
    net[2] = activation
    return net


@pytest.mark.parametrize("given", [False, True], ids=["trained", "given"])
def test_another_activation_under_the_same_weights(tmp_path: Path, given: bool) -> None:
    """Rows 38 and 50: ReLU against Tanh, for copies of the model and for a given one."""

    def options(activation: nn.Module) -> dict[str, Any]:
        net = net_with(activation)
        return {"suspicious": net} if given else {"model": net}

    guard_of(cache_dir=tmp_path, **options(nn.ReLU())).scan()
    refused(r"architecture\.2: .*ReLU.* -> .*Tanh", cache_dir=tmp_path, **options(nn.Tanh()))


def test_another_release_of_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 38: versions of what decodes and resizes are named."""
    guard_of(cache_dir=tmp_path).scan()
    real = cgd_wrap.data.identity.importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "99.1.0" if name == "pillow" else real(name)
    )
    refused(r"pillow: '\d+\.\d+' -> '99\.1'", cache_dir=tmp_path)


class Folder(Dataset[Any]):
    """Images of a folder, as most users write it."""

    def __init__(self, root: Path) -> None:
        self.samples = sorted((str(file), int(file.stem[-1])) for file in root.glob("*.png"))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.samples[index][0]) as image:
            return as_tensor(image), self.samples[index][1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for index, (image, label) in enumerate(FILES):
        image.save(root / f"{index:03}-{label}.png")
    return root


def replace_files(folder: Path) -> None:
    """Other pictures in 40 of 120 files, none of which is among the 64 that are probed."""
    from cgd_wrap.data.probes import spread

    probed = set(spread(len(FILES), 64))
    files = sorted(folder.glob("*.png"))
    for index in [i for i in range(len(files)) if i not in probed][:40]:
        FILES[index][0].rotate(90).save(files[index])
        os.utime(files[index], (2e9, 2e9))


def test_replaced_files(tmp_path: Path, folder: Path) -> None:
    """Row 51: files with the same names but other sizes or times are noticed, in cache and save."""
    cache, saved = tmp_path / "cache", tmp_path / "saved"
    guard_of(Folder(folder), cache_dir=cache).scan().save(saved)
    guard_of(Folder(folder), cache_dir=cache).scan()
    CGDGuard.load(saved, tiny_net(), Folder(folder), class_names=NAMES)
    replace_files(folder)
    error = refused("dataset files: '120 files", dataset=Folder(folder), cache_dir=cache)
    assert set(error.fields) == {"dataset files"}
    with pytest.raises(CacheMismatchError, match="dataset files: '120 files"):
        CGDGuard.load(saved, tiny_net(), Folder(folder), class_names=NAMES)


def test_pixels_are_part_of_a_saved_guard(tmp_path: Path) -> None:
    """Row 51: a dataset whose images come from elsewhere is known by the pixels of 64 samples."""

    class Elsewhere(Items):
        def __getitem__(self, index: int) -> Any:
            image, label = PICTURES[index]
            return as_tensor(image.rotate(turn)), label

    turn = 0
    guard_of(Elsewhere(range(len(PICTURES)))).scan().save(tmp_path)
    turn = 90
    with pytest.raises(CacheMismatchError, match="samples: "):
        CGDGuard.load(tmp_path, tiny_net(), Elsewhere(range(len(PICTURES))), class_names=NAMES)


TRAININGS = {
    "protect": lambda guard: guard.protect(DataLoader(guard.base, 16, shuffle=True)),
    "fit": lambda guard: guard.fit(epochs=1),
    "balanced_view": lambda guard: guard.balanced_view,
    "sampler": lambda guard: guard.sampler(),
    "loss": lambda guard: guard.loss(),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    guard_of().scan().save(folder)
    return folder


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("earlier", [False, True], ids=["at once", "after a first use"])
def test_a_dataset_that_grew_is_refused(saved: Path, training: str, earlier: bool) -> None:
    """Row 52: refused where the parts of a training are made, in words, at any later time."""
    guard = CGDGuard.load(saved, tiny_net(), Counting(), class_names=NAMES, progress=False)
    if earlier:
        TRAININGS[training](guard)
    guard.base.items += guard.base.items[:10]
    with pytest.raises(DatasetError, match=r"has 70 samples now and had 60 .* scan again"):
        TRAININGS[training](guard)


def test_a_dataset_that_was_reordered_is_refused(saved: Path) -> None:
    """Row 52: labels and images that aren't in the places of the scan."""
    guard = CGDGuard.load(saved, tiny_net(), Counting(), class_names=NAMES)
    guard.base.items.reverse()
    guard.base.cache.clear()
    with pytest.raises(DatasetError, match="reordered"):
        guard.protect(DataLoader(guard.base, 16))


def test_a_dataset_that_grew_before_its_scan_is_refused() -> None:
    """Row 52: labels are read when the guard is made."""
    guard = guard_of()
    guard.base.items.append(guard.base.items[0])
    with pytest.raises(DatasetError, match="has 61 samples now and had 60"):
        guard.scan()


def test_a_dataset_that_grew_before_it_is_saved_is_refused(tmp_path: Path) -> None:
    """Row 52: a saved result belongs to the data of the scan."""
    guard = guard_of().scan()
    guard.base.items.append(guard.base.items[0])
    with pytest.raises(DatasetError, match="has 61 samples now and had 60"):
        guard.save(tmp_path)


def test_a_resumed_run_is_trained_by_the_same_numbers(tmp_path: Path) -> None:
    """Row 38: a model that has learned since the scan is no model to be repaired."""
    config = CGDConfig(suspicious_batch_size=20, suspicious_epochs=1, suspicious_side=16)
    assert config.depends_on_model
    model, data = tiny_net(), Counting()
    first = guard_of(data, model, config=config, cache_dir=tmp_path).scan().result
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for images, labels in DataLoader(data, 16, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    resumed = guard_of(data, model, config=config, cache_dir=tmp_path).scan()
    assert resumed.result.class_knowledge == first.class_knowledge
    assert not resumed.result.trained
    assert resumed.scan(overwrite=True).result.trained
