"""One pass over a dataset: what is computed, what is recorded, and what is refused."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data.workers import Workers
from cgd_wrap.errors import BadSampleError, CGDError, DatasetError
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.scanner import Scanner
from cgd_wrap.scan.store import UNIT_SIZE, UnitStore
from cgd_wrap.scan.unit_results import Output

WEIGHTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Images(Dataset[Tensor]):
    """Random images; ``fatal`` ones end the process that reads them, ``bad`` ones can't be read."""

    def __init__(self, rows: int, *, bad=(), fatal=(), kill=True, odd=None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.rand(rows, 3, 2, 2, generator=generator)
        self.bad, self.fatal, self.kill, self.odd = set(bad), set(fatal), kill, odd
        self.home = os.getpid()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.bad:
            raise BadSampleError(index, "truncated", "OSError: too short", f"folder/{index}.jpg")
        if index in self.fatal and os.getpid() != self.home:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return self.pixels[index, :, :, :1] if index == self.odd else self.pixels[index]


class Linear:
    """Four numbers an image; notes how it was called."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.full: list[int] = []

    def __call__(self, images: Tensor, *, full_precision: bool) -> Tensor:
        (self.full if full_precision else self.sizes).append(len(images))
        return images.flatten(1) @ WEIGHTS


def scan(
    images: Images, folder: Path, score=None, *, rank=0, world=1, width=4, **options
) -> UnitStore:
    store = UnitStore.open(folder, len(images), {"pass": "test"})
    runtime = Runtime(torch.device("cpu"), rank, world)
    output = Output(store, "logits", (width,), torch.float32, score or Linear())
    Scanner(images, [output], runtime=runtime, **{"progress": False, **options}).run("test")
    return store


def logits_of(store: UnitStore) -> Tensor:
    return torch.cat([tensors["logits"] for _, tensors, _ in store.units()])


def bad_of(store: UnitStore) -> dict[int, list[str | None]]:
    return {index: why for *_, bad in store.units() for index, why in bad.items()}


@pytest.mark.parametrize("rows", [11, UNIT_SIZE, UNIT_SIZE + 1, 2 * UNIT_SIZE, 2 * UNIT_SIZE + 70])
def test_every_row_is_scored_once_in_order(tmp_path: Path, rows: int) -> None:
    images = Images(rows)
    store = scan(images, tmp_path)
    assert len(store) == -(-rows // UNIT_SIZE)
    torch.testing.assert_close(logits_of(store), images.pixels.flatten(1) @ WEIGHTS)
    assert bad_of(store) == {}


def test_batches_never_cross_units(tmp_path: Path) -> None:
    score = Linear()
    scan(Images(2 * UNIT_SIZE + 70), tmp_path, score, batch_size=300)
    assert score.sizes == [304, 304, 304, 128] * 2 + [80]  # filled up to multiples of 16


@pytest.mark.parametrize("batch_size", [1, 7, 128, 5000])
def test_batch_size_does_not_change_the_scores(tmp_path: Path, batch_size: int) -> None:
    images = Images(UNIT_SIZE + 30)
    found = logits_of(scan(images, tmp_path, batch_size=batch_size))
    torch.testing.assert_close(found, images.pixels.flatten(1) @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_any_number_of_processes_and_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    images = Images(3 * UNIT_SIZE + 1, bad=[5, 2000])
    options = {"max_bad_fraction": 1.0, "batch_size": 100}
    one, two, workers = (tmp_path / name / "clip" for name in ("one", "two", "workers"))
    scan(images, one, **options)
    for rank in (1, 0):
        scan(images, two, rank=rank, world=2, **options)
    scan(images, workers, workers=Workers(2), **options)
    expected = {p.name: p.read_bytes() for p in one.iterdir()}
    assert len(expected) == 5
    for other in (two, workers):
        assert {p.name: p.read_bytes() for p in other.iterdir()} == expected


def test_a_finished_unit_is_not_read_again(tmp_path: Path) -> None:
    images = Images(2 * UNIT_SIZE)
    scan(images, tmp_path, world=2)
    images.bad = set(range(UNIT_SIZE))  # would raise
    score = Linear()
    scan(images, tmp_path, score)
    assert sum(score.sizes) == UNIT_SIZE


class Two(Images):
    """Gives the image twice, the second time in bytes."""

    def __init__(self, rows: int, **options) -> None:
        super().__init__(rows, **options)
        self.reads = torch.zeros(rows, dtype=torch.int64)

    def __getitem__(self, index: int):
        image = super().__getitem__(index)
        self.reads[index] += 1
        return image, (image * 255).to(torch.uint8)


def outputs_of(folder: Path, rows: int, score=None) -> list[Output]:
    first, second = (UnitStore.open(folder / name, rows, {}) for name in ("scores", "copies"))
    return [
        Output(first, "logits", (4,), torch.float32, score or Linear()),
        Output(second, "images", (3, 2, 2), torch.uint8, None),
    ]


def test_several_outputs_share_the_read(tmp_path: Path) -> None:
    images, runtime = Two(UNIT_SIZE + 30, bad=[3]), Runtime(torch.device("cpu"), 0, 1)
    options = {"runtime": runtime, "max_bad_fraction": 0.01, "progress": False}
    outputs = outputs_of(tmp_path, len(images))
    Scanner(images, outputs, **options).run("test")
    assert images.reads.tolist() == [0 if i == 3 else 1 for i in range(len(images))]
    expected = images.pixels.flatten(1) @ WEIGHTS
    expected[3] = 0
    torch.testing.assert_close(logits_of(outputs[0].store), expected)
    copies = torch.cat([tensors["images"] for _, tensors, _ in outputs[1].store.units()])
    bytes_ = (images.pixels * 255).to(torch.uint8)
    bytes_[3] = 0
    assert torch.equal(copies, bytes_)
    assert all(list(bad_of(output.store)) == [3] for output in outputs)


def test_of_several_outputs_only_those_that_lack_a_unit_are_computed(tmp_path: Path) -> None:
    images, runtime = Two(2 * UNIT_SIZE), Runtime(torch.device("cpu"), 0, 1)
    Scanner(images, outputs_of(tmp_path, len(images)), runtime=runtime, progress=False).run("test")
    (tmp_path / "copies" / "00001.safetensors").unlink()
    images.reads.zero_()
    score = Linear()
    outputs = outputs_of(tmp_path, len(images), score)
    Scanner(images, outputs, runtime=runtime, progress=False).run("test")
    assert images.reads.tolist() == [0] * UNIT_SIZE + [1] * UNIT_SIZE
    assert score.sizes == []
    assert outputs[1].store.is_complete()


def test_a_unit_that_cannot_be_written_ends_the_scan(tmp_path: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UnitStore, "write", full)
    with pytest.raises(OSError, match="No space left"):
        scan(Images(50), tmp_path)
    with pytest.raises(OSError, match="No space left"):
        scan(Images(5 * UNIT_SIZE), tmp_path / "large")


def overflowing(images: Tensor, *, full_precision: bool) -> Tensor:
    """As in fp16: brighter images overflow, and one is beyond help."""
    logits = images.flatten(1) @ WEIGHTS
    if not full_precision:
        logits[images[:, 0, 0, 0] > 0.9] = float("inf")
    logits[images[:, 0, 0, 0] == 2.0] = float("nan")
    return logits


def test_overflow_is_computed_again_in_fp32(tmp_path: Path) -> None:
    images = Images(200)
    found = logits_of(scan(images, tmp_path, overflowing))
    torch.testing.assert_close(found, images.pixels.flatten(1) @ WEIGHTS)


def test_what_stays_infinite_is_a_bad_sample(tmp_path: Path) -> None:
    images = Images(200)
    images.pixels[17, 0, 0, 0] = 2.0
    with pytest.raises(BadSampleError, match=r"sample 17 is unusable \[nonfinite\]"):
        scan(images, tmp_path / "raise", overflowing)
    store = scan(images, tmp_path / "record", overflowing, max_bad_fraction=0.005)
    assert bad_of(store) == {17: ["nonfinite", "the model's output is not finite", None]}
    found = logits_of(store)
    assert torch.equal(found[17], torch.zeros(4))
    assert bool(found[[*range(17), *range(18, 200)]].isfinite().all())


def test_raise_names_index_and_path_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"sample 7 \('folder/7\.jpg'\)") as caught:
        scan(Images(200, bad=[90, 7]), tmp_path)
    assert (caught.value.index, caught.value.reason) == (7, "truncated")
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_record_keeps_a_row_of_zeros_with_its_reason(tmp_path: Path, num_workers: int) -> None:
    images = Images(UNIT_SIZE + 30, bad=[0, 500, UNIT_SIZE])
    store = scan(images, tmp_path, max_bad_fraction=0.01, workers=Workers(num_workers))
    assert bad_of(store) == {
        i: ["truncated", "OSError: too short", f"folder/{i}.jpg"] for i in (0, 500, UNIT_SIZE)
    }
    found, expected = logits_of(store), images.pixels.flatten(1) @ WEIGHTS
    expected[[0, 500, UNIT_SIZE]] = 0.0
    torch.testing.assert_close(found, expected)


def test_a_unit_without_any_good_sample_has_its_width(tmp_path: Path) -> None:
    images = Images(UNIT_SIZE + 1, bad=[UNIT_SIZE])
    store = scan(images, tmp_path, max_bad_fraction=0.01)
    assert logits_of(store).shape == (UNIT_SIZE + 1, 4)


def test_too_many_bad_samples_end_the_scan(tmp_path: Path) -> None:
    images = Images(UNIT_SIZE + 30, bad=[3, 4, 5, UNIT_SIZE])
    options = {"batch_size": 100}
    with pytest.raises(DatasetError, match=r"4 samples .* max_bad_fraction allows \(3 of 1054\)"):
        scan(images, tmp_path / "a", max_bad_fraction=3 / 1054, **options)
    assert not (tmp_path / "a" / "00001.safetensors").exists()
    scan(images, tmp_path / "b", max_bad_fraction=4 / 1054, **options)


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "exit"])
def test_a_sample_that_kills_its_worker_is_recorded(tmp_path: Path, kill, caplog) -> None:
    images = Images(UNIT_SIZE + 200, fatal=[700, UNIT_SIZE + 199], kill=kill)
    with caplog.at_level(logging.WARNING):
        store = scan(images, tmp_path, max_bad_fraction=0.01, workers=Workers(2), batch_size=64)
    assert {index: why[0] for index, why in bad_of(store).items()} == {
        700: "worker_killed",
        UNIT_SIZE + 199: "worker_killed",
    }
    expected = images.pixels.flatten(1) @ WEIGHTS
    expected[[700, UNIT_SIZE + 199]] = 0.0
    torch.testing.assert_close(logits_of(store), expected)
    assert "sample by sample" in caplog.text


def test_a_worker_may_die_while_the_model_computes(tmp_path: Path) -> None:
    def slowly(images: Tensor, *, full_precision: bool) -> Tensor:
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:  # the signal comes in here
            logits = images.flatten(1) @ WEIGHTS
        return logits

    images = Images(UNIT_SIZE + 30, fatal=[UNIT_SIZE + 3])
    store = scan(
        images, tmp_path, slowly, max_bad_fraction=0.01, workers=Workers(1),
        batch_size=UNIT_SIZE,
    )  # fmt: skip
    assert list(bad_of(store)) == [UNIT_SIZE + 3]
    expected = images.pixels.flatten(1) @ WEIGHTS
    expected[UNIT_SIZE + 3] = 0.0
    torch.testing.assert_close(logits_of(store), expected)


def test_no_worker_is_left_to_die_later(tmp_path: Path) -> None:
    """Else torch would raise in the user's code, when a second fatal sample is reached."""
    images = Images(64, fatal=range(20, 64))
    with pytest.raises(DatasetError, match="4 samples killed"):
        scan(images, tmp_path, max_bad_fraction=1.0, workers=Workers(2), batch_size=4)
    assert multiprocessing.active_children() == []


def test_a_killed_worker_raises_under_raise(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"sample 30 is unusable \[worker_killed\]"):
        scan(Images(100, fatal=[30]), tmp_path, workers=Workers(1))


def test_after_three_killed_workers_the_scan_gives_up(tmp_path: Path) -> None:
    options = {"max_bad_fraction": 1.0, "workers": Workers(1)}
    store = scan(Images(64, fatal=[3, 4, 60]), tmp_path / "three", **options)
    assert list(bad_of(store)) == [3, 4, 60]
    with pytest.raises(DatasetError, match=r"4 samples killed .* sample 60"):
        scan(Images(64, fatal=[3, 4, 5, 60]), tmp_path / "four", **options)


class Raises(Images):
    kind: type[Exception] = RuntimeError

    def __getitem__(self, index: int) -> Tensor:
        if index == 30:
            raise self.kind("a fault of the transform")
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, EOFError])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_not_its_death(tmp_path: Path, kind, num_workers: int) -> None:
    images = Raises(100)
    images.kind = kind
    with pytest.raises(kind, match="a fault of the transform"):
        scan(images, tmp_path, max_bad_fraction=1.0, workers=Workers(num_workers))


def test_workers_need_few_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        images = Images(2 * UNIT_SIZE)
        store = scan(images, tmp_path, workers=Workers(2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    torch.testing.assert_close(logits_of(store), images.pixels.flatten(1) @ WEIGHTS)


def test_images_of_different_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"differ in shape: \[\(3, 2, 1\), \(3, 2, 2\)\]"):
        scan(Images(100, odd=50), tmp_path)


def test_a_model_of_another_width_is_refused_at_its_first_batch(tmp_path: Path) -> None:
    score = Linear()
    with pytest.raises(ValueError, match="4 values an image, not 10"):
        scan(Images(1000), tmp_path, score, width=10, batch_size=50)
    assert score.sizes == [64]  # 50, filled up to a multiple of 16


def too_much_for_a_gpu() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


SHORTAGES = [too_much_for_a_gpu, lambda: torch.empty(2**60), lambda: np.empty(2**58)]


@pytest.mark.parametrize("shortage", SHORTAGES, ids=["GPU", "CPU", "array"])
def test_when_memory_runs_out_batches_are_halved(tmp_path: Path, shortage, caplog) -> None:
    """Row 40, and the same on a CPU."""
    score = Linear()

    def within_memory(images: Tensor, *, full_precision: bool) -> Tensor:
        if len(images) > 40:
            shortage()
        return score(images, full_precision=full_precision)

    images = Images(UNIT_SIZE + 30)
    with caplog.at_level(logging.WARNING):
        store = scan(images, tmp_path, within_memory, batch_size=256)
    torch.testing.assert_close(logits_of(store), images.pixels.flatten(1) @ WEIGHTS)
    assert "memory ran out; going on with batches of 32" in caplog.text
    assert max(score.sizes) == 32


@pytest.mark.parametrize("shortage", SHORTAGES, ids=["GPU", "CPU", "array"])
def test_memory_for_not_even_one_image_is_an_error(tmp_path: Path, shortage) -> None:
    """Row 40."""

    def never_enough(images: Tensor, *, full_precision: bool) -> Tensor:
        shortage()
        return images

    with pytest.raises(CGDError, match=r"memory ran out on cpu even with a batch size of 1: "):
        scan(Images(100), tmp_path, never_enough)


@pytest.mark.parametrize("workers", [Workers(), Workers(1)])
def test_memory_that_runs_out_while_a_batch_is_read(tmp_path: Path, workers, caplog) -> None:
    """Row 40."""

    class Heavy(Images):
        def __getitem__(self, index: int) -> Tensor:
            return torch.empty(2**60)

    with pytest.raises(CGDError, match="even with a batch size of 1"):
        scan(Heavy(100), tmp_path, workers=workers, batch_size=4)
    assert "going on with batches of 2" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_random_streams_are_left_alone(tmp_path: Path, num_workers: int) -> None:
    # Not Python's own stream: beartype, which is at work in these tests, draws from it.
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    scan(Images(300), tmp_path, workers=Workers(num_workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
