"""What a user can get wrong: one clear error each, before any long work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarded_run import ByColour, Pictures, network
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.errors import CacheMismatchError, ClipLoadError, DatasetError
from cgd_wrap.models.small_resnet import small_resnet

N = 60
CONFIG = CGDConfig(
    suspicious_epochs=1, suspicious_batch_size=32, suspicious_side=16, allow_missing_classes=True
)


class Changed(Pictures):
    """Pictures with other labels, pixels or a transform."""

    def __init__(self, rows: int = N, labels: Any = None, noise: float = 0.0) -> None:
        super().__init__(rows, 16)
        self.given = self.labels.tolist() if labels is None else labels
        self.noise = noise

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image = self.images[index]
        return (image + self.noise * torch.rand(1)).clamp(0, 1), self.given[index]


def labels_with(value: Any) -> list[Any]:
    labels: list[Any] = [index % 3 for index in range(N)]
    for index in range(4, N, 4):
        labels[index] = value
    return labels


class Stream(IterableDataset[Any]):
    def __iter__(self):
        yield torch.rand(3, 16, 16), 0


def attempt(cache: Path, dataset: Any = None, **options: Any) -> CGDGuard:
    """A whole scan with something wrong."""
    model = options.pop("model", None) or network()
    overwrite = options.pop("overwrite", False)
    dataset = Changed() if dataset is None else dataset
    options = {"clip": ByColour(), "config": CONFIG, "progress": False} | options
    return CGDGuard(model, dataset, cache_dir=cache, **options).scan(overwrite=overwrite)


def assert_nothing_was_done(cache: Path) -> None:
    assert not list(cache.rglob("*.safetensors"))  # no unit, no trained model


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "-1"),
        (3, "3"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        ("bee", "'bee'"),
        (None, "None"),
        (np.array([0.5, 0.5, 0.0]), r"\[0\.5, 0\.5, 0\.0\]"),
    ],
    ids=str,
)
def test_bad_labels(tmp_path: Path, value: Any, shown: str) -> None:
    with pytest.raises(DatasetError, match=rf"14 of 60 labels .*\[0, 3\).*sample 4: {shown}"):
        attempt(tmp_path, Changed(labels=labels_with(value)))
    assert_nothing_was_done(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["circle", "square"], r"in \[0, 2\)"),
        (["circle", "square", "star", "ring"], "the model has 3 outputs, but there are 4 classes"),
        (["circle", "star", "star"], r"'star' names the classes \[1, 2\]"),
        (["circle", "  ", "star"], "class 1 has an empty name"),
        (["star", "square", "circle"], "another order than its labels"),
        ("circle", "list of names"),
        ([], "at least 2 classes"),
    ],
    ids=["few", "many", "twice", "empty", "order", "text", "none"],
)
def test_bad_class_names(tmp_path: Path, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attempt(tmp_path, class_names=names)
    assert_nothing_was_done(tmp_path)


def test_no_class_names(tmp_path: Path) -> None:
    pairs = [(torch.rand(3, 16, 16), index % 3) for index in range(N)]
    with pytest.raises(DatasetError, match=r"no class names .* in list: pass class_names="):
        attempt(tmp_path, pairs)
    assert_nothing_was_done(tmp_path)


@pytest.mark.parametrize("role", ["model", "suspicious"])
def test_a_model_with_another_number_of_outputs(tmp_path: Path, role: str) -> None:
    wrong = {role: small_resnet(5, (4, 4, 8, 8))}
    with pytest.raises(ValueError, match="the model has 5 outputs, but there are 3 classes"):
        attempt(tmp_path, **wrong)
    assert_nothing_was_done(tmp_path)


def test_a_model_that_gives_no_logits(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must return logits \[B, C\].*\[2, 3, 16, 16\]"):
        attempt(tmp_path, model=nn.Conv2d(3, 3, 1))
    assert_nothing_was_done(tmp_path)


def test_a_zero_shot_object_with_another_number_of_classes(tmp_path: Path) -> None:
    class Four(ByColour):
        def logits(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))[:, [0, 1, 2, 2]]

    with pytest.raises(ValueError, match="4 values an image, not 3"):
        attempt(tmp_path, clip=Four())
    assert_nothing_was_done(tmp_path)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere\.pt"):
        attempt(tmp_path, suspicious=tmp_path / "nowhere.pt")
    assert_nothing_was_done(tmp_path)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    torch.save(small_resnet(3, (8, 8, 8, 8)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt' can't be loaded as weights of Sequential"):
        attempt(tmp_path / "cache", suspicious=tmp_path / "other.pt")
    assert_nothing_was_done(tmp_path / "cache")


def test_a_missing_clip_folder(tmp_path: Path) -> None:
    with pytest.raises(ClipLoadError, match="nowhere"):
        attempt(tmp_path / "cache", clip=f"local-dir:{tmp_path / 'nowhere'}")
    assert_nothing_was_done(tmp_path / "cache")


def content(cache: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in cache.rglob("*") if path.is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def other_pixels() -> Changed:
    changed = Changed()
    changed.images[30] = changed.images[30].flip(1)
    return changed


CHANGES = {
    "labels": (lambda: Changed(labels=[(index + 1) % 3 for index in range(N)]), "labels: "),
    "pixels": (other_pixels, "dataset.images: "),
    "length": (lambda: Changed(N + 3), "rows: 60 -> 63"),
}


@pytest.mark.parametrize(("change", "field"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_a_dataset_that_changed_since(tmp_path: Path, change, field: str, given: bool) -> None:
    suspicious = network() if given else None
    attempt(tmp_path, suspicious=suspicious)
    before = content(tmp_path)
    with pytest.raises(CacheMismatchError, match=field):
        attempt(tmp_path, change(), suspicious=suspicious)
    assert content(tmp_path) == before
    attempt(tmp_path, change(), suspicious=suspicious, overwrite=True)
    changed = content(tmp_path)
    attempt(tmp_path, change(), suspicious=suspicious)
    assert content(tmp_path) == changed


def test_another_suspicious_model_on_the_same_cache(tmp_path: Path) -> None:
    attempt(tmp_path, suspicious=network())
    before = content(tmp_path)
    other = network()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(CacheMismatchError, match="weights: ") as caught:
        attempt(tmp_path, suspicious=other)
    assert set(caught.value.fields) == {"weights"}
    assert content(tmp_path) == before


def test_damaged_units_are_done_again_in_place(tmp_path: Path) -> None:
    first = attempt(tmp_path, suspicious=network())
    before = {name: data for name, (data, _) in content(tmp_path).items()}
    for path in tmp_path.rglob("00000.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    second = attempt(tmp_path, suspicious=network())
    assert {name: data for name, (data, _) in content(tmp_path).items()} == before
    assert torch.equal(first.entropy_map.clip_rank, second.entropy_map.clip_rank)


def test_a_finished_scan_is_read_from_a_read_only_folder(tmp_path: Path) -> None:
    for suspicious in (network(), None):
        cache = tmp_path / str(suspicious is None)
        attempt(cache, suspicious=suspicious)
        before = content(cache)
        for path in cache.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        attempt(cache, suspicious=suspicious)
        assert content(cache) == before


@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_random_augmentation(tmp_path: Path, given: bool) -> None:
    suspicious = network() if given else None
    for _ in range(2):  # the same clear error each time
        with pytest.raises(DatasetError, match=r"32 of 32 samples differ .* clip_dataset="):
            attempt(tmp_path, Changed(noise=0.3), suspicious=suspicious)
    assert_nothing_was_done(tmp_path)
    view = Changed() if given else None  # what the second try needs; the first one left no trace
    attempt(
        tmp_path, Changed(noise=0.3), suspicious=suspicious, clip_dataset=Changed(),
        eval_dataset_view=view,
    )  # fmt: skip


def test_random_augmentation_in_the_given_model_s_view(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"differ when they are read twice"):
        attempt(tmp_path, eval_dataset_view=Changed(noise=0.3), suspicious=network())
    assert not (tmp_path / "suspicious").exists()


def test_another_view_for_the_given_model(tmp_path: Path) -> None:
    suspicious = network()
    attempt(tmp_path, suspicious=suspicious, eval_dataset_view=Changed())
    with pytest.raises(CacheMismatchError, match="eval_dataset_view: "):
        attempt(tmp_path, suspicious=suspicious, eval_dataset_view=other_pixels())


def test_too_few_samples(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least 10 samples to rank, got 9"):
        attempt(tmp_path, Changed(9))
    assert_nothing_was_done(tmp_path)


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no samples"):
        attempt(tmp_path, Changed(0))
    assert_nothing_was_done(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least 2 classes, but all 60 samples have label 1"):
        attempt(tmp_path, Changed(labels=[1] * N))
    assert_nothing_was_done(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "expected a dataset, got None: make the guard once the data are loaded"),
        (Stream(), r"map-style dataset .*, got Stream"),
        (torch.utils.data.DataLoader(Changed()), r"pass loader\.dataset"),
        ({"train": Changed()}, r"dataset\['train'\]"),
        ([(index, index % 3) for index in range(N)], "expected an image and a label"),
    ],
    ids=["none", "stream", "loader", "dict of splits", "no images"],
)
def test_no_map_style_dataset_of_images(tmp_path: Path, dataset: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        CGDGuard(network(), dataset, class_names=["a", "b", "c"], cache_dir=tmp_path).scan()
    assert_nothing_was_done(tmp_path)


@pytest.mark.parametrize("name", ["clip_dataset", "eval_dataset_view"])
def test_a_view_of_another_length(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"{name} has 63 samples and the dataset 60"):
        attempt(tmp_path, **{name: Changed(N + 3)})
    assert_nothing_was_done(tmp_path)


def test_scores_that_are_all_alike(tmp_path: Path) -> None:
    class Undecided(ByColour):
        def logits(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 3)

    with pytest.raises(DatasetError, match="all 60 samples have the same clip score"):
        attempt(tmp_path, clip=Undecided(), suspicious=network())


def test_a_clip_that_gives_no_tensor_is_named(tmp_path: Path) -> None:
    class InNumpy(ByColour):
        def logits(self, images: Tensor) -> Any:
            return super().logits(images).numpy()

    with pytest.raises(TypeError, match="must return a tensor, not ndarray"):
        attempt(tmp_path, clip=InNumpy())
