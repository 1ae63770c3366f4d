"""Measure what a scan costs beside its models: reading, batching, storing, and a finished cache.

    OMP_NUM_THREADS=1 python examples/benchmarks/lean_scan.py
    OMP_NUM_THREADS=1 python examples/benchmarks/lean_scan.py --workers 2 --tries 5

prints a markdown table. The images lie in memory and the scorer costs nothing, so that all that is
left is the scan itself, beside a bare DataLoader over the same view, measured by turns. Then the
script counts how often a scan reads each image, and times a second scan from a finished cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import HEAD, Measured, peak_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.data.workers import Workers
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.scanner import Scanner
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.unit_results import Output

KINDS = [(224, torch.float32, 4096), (224, torch.uint8, 8192), (32, torch.uint8, 65536)]
KEPT = 512  # images that are held; the others are the same ones again
NAMES = ["a", "b", "c", "d"]


class InMemory(Dataset[Tensor]):
    """Random images."""

    def __init__(self, side: int, dtype: torch.dtype, size: int) -> None:
        images = torch.randint(0, 256, (KEPT, 3, side, side), dtype=torch.uint8)
        self.images, self.size = list(images.to(dtype)), size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index % KEPT]


def free(images: Tensor, *, full_precision: bool) -> Tensor:
    """A scorer that costs nothing."""
    return torch.zeros(len(images), 10)


def scanned(view: InMemory, workers: int) -> None:
    """A pass over the images, into a folder that is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        store = UnitStore.open(Path(folder) / "pass", len(view), {})
        output = Output(store, "logits", (10,), torch.float32, free)
        runtime = Runtime(torch.device("cpu"), 0, 1)
        Scanner(view, [output], runtime=runtime, workers=Workers(workers),
                progress=False).run("")  # fmt: skip


def loaded(view: InMemory, workers: int) -> None:
    """The same images by a bare DataLoader, as a user would write it."""
    for _ in DataLoader(view, 128, num_workers=workers):
        pass


def timed(work: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


class Labelled(Dataset[Any]):
    """Images of 32 px with labels, and a count of how often each is read."""

    classes = NAMES

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (KEPT, 3, 32, 32), generator=generator).to(torch.uint8)
        self.targets = [index % len(NAMES) for index in range(size)]
        self.reads = torch.zeros(size, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        return self.images[index % KEPT], self.targets[index]


class ByBrightness:
    """A zero-shot classifier that costs nothing."""

    def fingerprint(self) -> str:
        """Stand for all that the classifier does."""
        return "by brightness"

    def logits(self, images: Tensor) -> Tensor:
        """Score the classes by the channels' means."""
        return images.mean((2, 3)).repeat(1, 2)[:, : len(NAMES)]


def guard_of(size: int, folder: str, network: str) -> CGDGuard:
    """A guard of made-up data with a tiny model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, len(NAMES)))
    config = CGDConfig(
        allow_missing_classes=True, suspicious_epochs=1, suspicious_network=network,
        suspicious_side=16,
    )  # fmt: skip
    return CGDGuard(
        model, Labelled(size), clip=ByBrightness(), config=config, cache_dir=folder, progress=False
    )


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--finished", type=int, default=20_000, help="samples of a finished cache")
    args = parser.parse_args()
    print(HEAD)
    for side, dtype, size in KINDS:
        view = InMemory(side, dtype, size)
        peak = peak_of(lambda view=view: scanned(view, args.workers))
        took, bare = [], []
        for _ in range(args.tries):
            bare.append(timed(loaded, view, args.workers))
            took.append(timed(scanned, view, args.workers))
        name = f"scan of {side} px, {str(dtype).removeprefix('torch.')}, {args.workers} workers"
        print(Measured(name, size, took, "a bare DataLoader", bare, peak).row(), flush=True)
    for network in ("copy", "small"):
        with tempfile.TemporaryDirectory() as folder:
            guard = guard_of(2000, folder, network)
            before = guard.base.reads.clone()
            guard.scan()
            reads = (guard.base.reads - before).tolist()
            print(f"\nsuspicious_network={network!r}: each image is read "
                  f"{statistics.median(reads):g} times")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        guard_of(args.finished, folder, "small").scan()
        guard = guard_of(args.finished, folder, "small")
        seconds = timed(guard.scan)
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
        print(f"\na finished cache of {args.finished:,} samples, {files} files: {seconds:.2f} s")


if __name__ == "__main__":
    main()
