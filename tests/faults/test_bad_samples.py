"""Samples that crash, hang, or hold impossible values: one of them is never the end of a scan."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarded_run import ByColour, Pictures, network
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.models.small_resnet import small_resnet

N = 60
RAISE = CGDConfig(
    suspicious_epochs=1, suspicious_batch_size=32, suspicious_side=16,
    allow_missing_classes=True, sample_timeout=0.7,
)  # fmt: skip
RECORD = RAISE.replace(on_bad_sample="record", max_bad_fraction=0.1)


class Odd(Pictures):
    """Labels that can't be had without the images; some samples do something else first."""

    def __init__(self, home: Path, **odd: Any) -> None:
        super().__init__(N, 16)
        self.reads, self.odd = home / "reads", {int(k[1:]): v for k, v in odd.items()}

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with self.reads.open("a") as file:
            file.write(f"{index}\n")
        self.odd.get(index, lambda: None)()
        return super().__getitem__(index)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


class Panic(BaseException):
    """As PyO3 raises it where code in Rust panics."""


def panic() -> None:
    raise Panic("index out of bounds")


def interrupt() -> None:
    raise KeyboardInterrupt


def guard_of(dataset: Any, config: CGDConfig = RECORD, **options: Any) -> CGDGuard:
    options = {"model": network(), "clip": ByColour(), "progress": False} | options
    return CGDGuard(options.pop("model"), dataset, config=config, **options)


def reasons_of(guard: CGDGuard) -> dict[int, str | None]:
    return {index: why[0] for index, why in guard.result.bad.items()}


# --- crashes and hangs --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_samples_that_crash_or_hang_cost_themselves_alone(tmp_path: Path, given: bool) -> None:
    """Rows 6, 55 and 56: the first sample is a probe of everything, the others are none."""
    dataset = Odd(tmp_path, _0=kill, _5=hang)
    suspicious = network() if given else None
    guard = guard_of(dataset, suspicious=suspicious, num_workers=1 if given else 2).scan()
    assert reasons_of(guard) == {0: "worker_killed", 5: "timeout"}
    assert int(guard.split.clean.sum()) > 0
    assert guard.targets[1:5].tolist() == [1, 2, 0, 1]
    # Twice each, to be sure; then never again: by no pass, no training, no probe, no measurement.
    reads = Counter(int(line) for line in dataset.reads.read_text().split())
    assert (reads[0], reads[5]) == (2, 2)
    guard.scan()
    guard.subject.raw_view()
    reads = Counter(int(line) for line in dataset.reads.read_text().split())
    assert (reads[0], reads[5]) == (2, 2)


@pytest.mark.parametrize(("fault", "reason"), [(kill, "worker_killed"), (hang, "timeout")])
def test_under_raise_the_sample_is_named(tmp_path: Path, fault: Any, reason: str) -> None:
    """Rows 6, 55 and 56."""
    with pytest.raises(BadSampleError, match=rf"sample 7 is unusable \[{reason}\].*on_bad_sample"):
        guard_of(Odd(tmp_path, _7=fault), RAISE, num_workers=1)


def test_a_panic_costs_its_sample_alone_in_this_process_too(tmp_path: Path) -> None:
    """Row 17: what Rust code raises is no Exception; what ends the process still ends it."""
    dataset = Odd(tmp_path, _7=panic)
    guard = guard_of(dataset).scan()
    assert reasons_of(guard) == {7: "getitem_failed"}
    with pytest.raises(BadSampleError, match=r"sample 7 is unusable.*Panic: index out of bounds"):
        guard_of(dataset, RAISE)
    with pytest.raises(KeyboardInterrupt):
        guard_of(Odd(tmp_path, _7=interrupt))


def test_labels_are_read_by_the_workers_that_were_asked_for(tmp_path: Path) -> None:
    def say_who() -> None:
        (tmp_path / str(os.getpid())).touch()

    class Large(Odd):
        def __init__(self, home: Path) -> None:
            super().__init__(home)
            self.images, self.labels = (t.repeat(10, *[1] * (t.ndim - 1)) for t in
                                        (self.images, self.labels))  # fmt: skip
            self.odd = dict.fromkeys(range(100, 10 * N), say_who)

    guard = guard_of(Large(tmp_path), num_workers=2)
    pids = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert len(pids - {os.getpid()}) >= 2
    assert guard.targets.tolist() == guard.base.labels.tolist()


def test_a_crash_in_the_other_views_is_survived(tmp_path: Path) -> None:
    """Row 56: samples of clip_dataset and eval_dataset_view are looked at first, too."""
    options = {"num_workers": 1, "suspicious": network()}
    raw, shown = (Odd(tmp_path, _0=kill) for _ in range(2))
    guard = guard_of(Pictures(N, 16), clip_dataset=raw, eval_dataset_view=shown, **options).scan()
    assert reasons_of(guard) == {0: "worker_killed"}
    guard.subject.raw_view()
    assert raw.reads.read_text().split().count("0") == 2  # the views note in the same file


def test_a_deadly_sample_whose_label_is_known_is_read_twice_in_all(tmp_path: Path) -> None:
    """Row 6: by the first probe that meets it, and once more to be sure."""
    from torchvision.datasets import ImageFolder

    reads, pictures = tmp_path / "reads", Pictures(N, 16)

    def load(path: str) -> Image.Image:
        if path.endswith("05.png"):
            with reads.open("a") as file:
                file.write(f"{path}\n")
            kill()
        with Image.open(path) as image:
            return image.convert("RGB")

    for index in range(N):
        folder = tmp_path / "images" / pictures.classes[int(pictures.labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = pictures.images[index].permute(1, 2, 0).mul(255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    guard = guard_of(ImageFolder(tmp_path / "images", loader=load), num_workers=1).scan()
    (why,) = guard.result.bad.values()
    assert why[0] == "worker_killed"
    assert str(why[2]).endswith("05.png")
    assert len(reads.read_text().split()) == 2


# --- impossible values --------------------------------------------------------------------------


class Spotted(Pictures):
    """Some samples have an impossible value in one pixel."""

    def __init__(self, **spots: float) -> None:
        super().__init__(N, 16)
        for index, value in spots.items():
            self.images[int(index[1:]), 0, 3, 3] = value


@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_one_impossible_pixel_is_one_bad_sample(given: bool) -> None:
    """Row 54."""
    dataset = Spotted(_0=float("nan"), _7=float("inf"), _30=-3.0, _31=1.00000012)
    guard = guard_of(dataset, suspicious=network() if given else None).scan()
    assert reasons_of(guard) == {0: "nonfinite", 7: "nonfinite", 30: "out_of_range"}
    assert "1 of 768 values are NaN or infinite" in str(guard.result.bad[0][1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"sample 9 is unusable \[nonfinite\]: 1 of 768 values"),
        (-3.0, r"sample 9 is unusable \[out_of_range\]: .*got \[-3, .*clip_dataset="),
    ],
)
def test_under_raise_the_impossible_pixel_is_named(value: float, message: str) -> None:
    """Row 54."""
    with pytest.raises(BadSampleError, match=message):
        guard_of(Spotted(_9=value), RAISE).scan()


class Changed(Pictures):
    """Pictures as another number range or type has them."""

    def __init__(self, change: Any) -> None:
        super().__init__(N, 16)
        self.images = change(self.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x - 0.5) / 0.25, r"sample 0: .*already normalised.*clip_dataset="),
        (lambda x: 255 * x, r"sample 0: .*floats of 0 to 255, which must be divided by 255"),
    ],
)
def test_a_whole_data_set_out_of_range_is_said_at_once(change: Any, message: str) -> None:
    """Row 54: only where most of the samples are like this."""
    with pytest.raises(DatasetError, match=message) as caught:
        guard_of(Changed(change)).scan()
    assert not isinstance(caught.value, BadSampleError)


# --- what the model takes -----------------------------------------------------------------------


class Inside(nn.Module):
    """Normalises inside; notes what it was given."""

    def __init__(self, kind: torch.dtype, low: float, high: float) -> None:
        super().__init__()
        self.kind, self.low, self.high = kind, low, high
        self.net = small_resnet(3, (4, 4, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == self.kind
        if bool(images.any()):  # not the black images of a first trial
            assert self.low < float(images.float().amax()) <= self.high
        return self.net(images.float() / self.high)


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("change", "kind"),
    [(as_bytes, torch.uint8), (lambda images: as_bytes(images).float(), torch.float32)],
    ids=["bytes", "floats of 0 to 255"],
)
@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_models_that_normalise_inside_get_what_the_data_are(change, kind, given: bool) -> None:
    model = Inside(kind, 2.0, 255.0)
    suspicious = Inside(kind, 2.0, 255.0) if given else None
    raw = Pictures(N, 16)
    guard = guard_of(Changed(change), RAISE, model=model, suspicious=suspicious, clip_dataset=raw)
    guard.scan()
    assert guard.result.class_knowledge is not None


def test_bytes_that_the_loop_normalises_are_scaled_for_fresh_copies() -> None:
    guard_of(Changed(as_bytes), RAISE).scan()  # the network itself takes floats alone


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_half_and_double_precision(kind: torch.dtype) -> None:
    for model, suspicious in ((network(), network()), (network().to(kind), None)):
        guard_of(Changed(lambda x: x.to(kind)), RAISE, model=model, suspicious=suspicious).scan()


class Bands(Dataset[Any]):
    """More channels than CLIP can see."""

    classes = Pictures.classes

    def __init__(self, count: int, as_arrays: bool = False, scale: float = 1.0) -> None:
        self.plain, self.as_arrays = Pictures(N, 16), as_arrays
        extra = torch.rand(N, count - 3, 16, 16, generator=torch.Generator().manual_seed(1))
        self.images = scale * torch.cat([self.plain.images, extra], dim=1)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.images[index], int(self.plain.labels[index])
        return (image.numpy() if self.as_arrays else image), label


def band_network(count: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(count), nn.Conv2d(count, 3, 3, bias=False),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


@pytest.mark.parametrize("count", [4, 5, 13])
@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_more_bands_with_rgb_for_clip(count: int, as_arrays: bool, given: bool) -> None:
    suspicious = band_network(count) if given else None
    guard = guard_of(
        Bands(count, as_arrays), RAISE.replace(early_exposure=1.0), model=band_network(count),
        suspicious=suspicious, clip_dataset=Pictures(N, 16),
    ).scan()  # fmt: skip
    loader, criterion = guard.protect(DataLoader(guard.base, 16))
    originals, exposed = guard.base.images.flatten(1), 0
    for images, targets in loader:
        assert images.shape[1:] == (count, 16, 16)
        as_they_are = (images.flatten(1)[:, None] == originals[None]).all(2).any(1)
        exposed += int((~as_they_are).sum())
        criterion(guard.model(images), targets).backward()
    assert exposed > 0


def test_bands_that_are_bad_are_found_before_the_training(tmp_path: Path) -> None:
    """Row 54: CLIP sees other images, and finds nothing."""
    data = Bands(13, scale=1000.0)
    data.images[3, 9, 0, 0] = float("nan")
    options = {"model": band_network(13), "clip_dataset": Pictures(N, 16)}
    guard = guard_of(data, **options).scan()
    assert reasons_of(guard) == {3: "nonfinite"}
    with pytest.raises(BadSampleError, match=r"sample 3 is unusable \[nonfinite\]: 1 of 3328"):
        guard_of(data, RAISE, cache_dir=tmp_path, **options).scan()
    assert not list(tmp_path.glob("suspicious/run-*"))


def test_bands_without_rgb_for_clip() -> None:
    message = r"sample 0 has the shape \(13, 16, 16\), and CLIP needs .*clip_dataset="
    with pytest.raises(DatasetError, match=message):
        guard_of(Bands(13), model=band_network(13)).scan()


def test_bands_that_are_augmented_at_random() -> None:
    class Moved(Bands):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return image + torch.rand(1), label

    with pytest.raises(DatasetError, match=r"differ when they are read twice.*eval_dataset_view="):
        guard_of(Moved(13), model=band_network(13), clip_dataset=Pictures(N, 16)).scan()


# --- what a transform is shown ------------------------------------------------------------------


class Pixels(Dataset[Any]):
    """PIL images with a transform under any name; one of them is a bomb to any resize."""

    classes = Pictures.classes

    def __init__(self, name: str, transform: Any, *, bomb: int | None = 0) -> None:
        plain = Pictures(N, 16)
        self.pictures = [Image.fromarray(x.permute(1, 2, 0).mul(255).byte().numpy())
                         for x in plain.images]  # fmt: skip
        if bomb is not None:
            self.pictures[bomb] = Image.new("RGB", (1, 5000))
        self.labels, self.name = plain.labels.tolist(), name
        setattr(self, name, transform)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return getattr(self, self.name)(self.pictures[index]), self.labels[index]


class Normalise:
    """Scales the shorter edge and normalises, as torchvision's Resize(224) would, but smaller."""

    def __call__(self, image: Image.Image) -> Tensor:
        assert image.size != (1, 5000), "the bomb was shown"
        scaled = image.resize((16, 16))
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 64 - 2


@pytest.mark.parametrize("name", ["transform", "image_transform"])
@pytest.mark.parametrize("given", [True, False], ids=["given model", "trained model"])
def test_no_transform_is_shown_a_bomb(name: str, given: bool) -> None:
    """Row 8."""
    suspicious = network() if given else None
    guard = guard_of(Pixels(name, Normalise()), suspicious=suspicious).scan()
    assert reasons_of(guard) == {0: "too_large"}
    assert "1 x 5000 pixels become 224 x 1120000" in str(guard.result.bad[0][1])


@pytest.mark.parametrize(
    "name", ["augs", "tfms", "pipeline", "aug", "preprocess", "tf", "t", "augment", "__t"]
)
def test_transforms_by_any_name_are_left_out(name: str) -> None:
    dataset = Pixels(name.replace("__", "_Pixels__"), Normalise(), bomb=None)
    raw = guard_of(dataset).subject.raw_view()
    assert all(raw[i].tobytes() == dataset.pictures[i].tobytes() for i in range(N))


def test_what_poisons_is_not_left_out_with_it() -> None:
    """A trigger gives a picture for a picture; only what makes floats is left out."""

    class Poisoned(Pixels):
        stamp = None

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = self.mark(self.pictures[index]) if index % 2 else self.pictures[index]
            return self.augs(image), self.labels[index]

    def stamped(image: Image.Image) -> Image.Image:
        marked = image.copy()
        marked.paste((255, 255, 255), (0, 0, 4, 4))
        return marked

    dataset = Poisoned("augs", Normalise(), bomb=None)
    dataset.mark = stamped
    raw = guard_of(dataset).scan().subject.raw_view()
    assert raw[1].getpixel((0, 0)) == (255, 255, 255)
    assert raw[2].tobytes() == dataset.pictures[2].tobytes()


def test_a_transform_that_can_not_be_left_out_is_named() -> None:
    class Bound(Pixels):
        """Needs its transform: what comes of it is worked on."""

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.augs(self.pictures[index]).mul(1.0), self.labels[index]

    message = r"already normalised.*clip_dataset=.*\['augs'\] of the dataset seem to do it"
    with pytest.raises(DatasetError, match=message):
        guard_of(Bound("augs", Normalise(), bomb=None)).scan()


# --- depth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_images_of_fewer_than_16_bits_in_16(tmp_path: Path, bits: int) -> None:
    """Row 11."""
    from torchvision.datasets import ImageFolder

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(10):
            values = rng.integers(0, 2**bits, (8, 8), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / name / f"{k}.png")

    def as_stored(path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.copy()

    dataset = ImageFolder(tmp_path, loader=as_stored)
    raw = guard_of(dataset, model=small_resnet(2, (4, 4, 8, 8))).subject.raw_view()
    for index, (path, _) in enumerate(dataset.samples):
        with Image.open(path) as image:
            expected = np.asarray(image) >> (bits - 8)
        np.testing.assert_array_equal(np.asarray(raw[index])[..., 0], expected)
