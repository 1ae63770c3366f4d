"""Measure what a guarded loader costs beside the plain loader that it was made of.

    OMP_NUM_THREADS=1 python examples/benchmarks/guarded_loader.py
    OMP_NUM_THREADS=1 python examples/benchmarks/guarded_loader.py --poison 0.05 --batch-size 512

prints a markdown table: time a sample of both loaders, measured by turns, and how often the guarded
loader reads an image for each sample that it serves. The images are JPEG files of 64 pixels that
are cropped at random, flipped and made tensors; or tensors in memory, of a dataset that reads whole
batches. No CLIP is needed: the scores of the scan are made up, and the training is a repair.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lean_numbers import judged
from measuring import seconds_of, shown
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from cgd_wrap.data import SampleLayout
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.protection import Protection

SIDE, CLASSES = 64, 10
COLUMNS = (
    "samples", "workers", "plain: median", "guarded: median", "ratio: min / median / max",
    "reads a sample",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


class Files(datasets.ImageFolder):
    """JPEG files in a folder for each class, augmented as usual; counts its reads."""

    def __init__(self, root: str) -> None:
        super().__init__(
            root,
            transforms.Compose(
                [
                    transforms.RandomCrop(SIDE, padding=SIDE // 8),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                ]
            ),
        )
        self.reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


class Batches(Dataset[Any]):
    """Images in memory, of which a batch is taken at once; counts its reads."""

    def __init__(self, labels: list[int]) -> None:
        self.images = torch.randint(256, (len(labels), 3, SIDE, SIDE), dtype=torch.uint8)
        self.targets, self.reads = labels, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        [sample] = self.__getitems__([index])
        return sample

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        self.reads += len(indices)
        images = self.images[indices].float().div_(255)
        return [(image, self.targets[i]) for image, i in zip(images, indices, strict=True)]


def write_files(root: str, size: int) -> None:
    """Write smooth random pictures, as many for each class."""
    for i in range(size):
        folder = Path(root) / str(i % CLASSES)
        folder.mkdir(exist_ok=True)
        coarse = torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / f"{i}.jpg", quality=90)


def scanned(labels: list[int], poison: float) -> ScanResult:
    """A result with made-up scores; the poison is in the first class."""
    given, size = torch.tensor(labels), len(labels)
    clip = torch.randn(size, dtype=torch.float64) * 3 - 4
    fast = torch.randn(size, dtype=torch.float64) * 3 - 2
    count = round(poison * size)
    poisoned = (given == 0).nonzero().squeeze(1)[:count]
    clip[poisoned] += 12
    fast[poisoned] -= 12
    result = judged(given, clip, fast)
    return replace(result, teacher=torch.randn(int(result.split.triggered.sum()), CLASSES))


def drained(loader: DataLoader[Any]) -> None:
    """Serve an epoch."""
    for _ in loader:
        pass


def seconds_a_sample(loaders: Sequence[DataLoader[Any]]) -> list[float]:
    """Seconds a sample of each loader, by turns, so that all meet the same load of the machine.

    The turns are batches; or epochs, where workers would read on in the turn of another loader.
    """
    if loaders[0].num_workers:
        return [seconds_of(partial(drained, one), 1)[0] / len(one.sampler) for one in loaders]
    passes, steps = [iter(loader) for loader in loaders], min(map(len, loaders)) - 1
    turns = [[seconds_of(one.__next__, 1)[0] for one in passes] for _ in range(steps)]
    return [sum(column) / (steps * loaders[0].batch_size) for column in zip(*turns, strict=True)]


def row(name: str, base: Any, workers: int, args: argparse.Namespace) -> str:
    """Measure both loaders of a dataset, and give the row of the table."""
    result = scanned(base.targets, args.poison)
    plain: DataLoader[Any] = DataLoader(
        base, args.batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    parts = Protection(result, result.config, GuardedDataset(base, SampleLayout(0, 1)))
    guarded, _ = parts.protect(plain, None, None)
    base.reads = 0
    served = sum(len(targets) for _, targets in guarded)
    reads = "–" if workers else f"{base.reads / served:.3f}"  # workers count for themselves
    times = [seconds_a_sample((plain, guarded)) for _ in range(args.tries)]
    ratios = sorted(mine / theirs for theirs, mine in times)
    medians = [shown(statistics.median(column)) for column in zip(*times, strict=True)]
    between = " / ".join(f"{r:.3f}" for r in (ratios[0], statistics.median(ratios), ratios[-1]))
    return f"| {name} | {workers} | {medians[0]} | {medians[1]} | {between} | {reads} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--poison", type=float, default=0.01, help="share that is poisoned")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--tries", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(HEAD)
    with tempfile.TemporaryDirectory() as root:
        write_files(root, args.samples)
        for workers in args.workers:
            print(row(f"JPEG files of {SIDE} px", Files(root), workers, args), flush=True)
    whole = Batches([i % CLASSES for i in range(args.samples)])
    print(row(f"tensors of {SIDE} px, read in batches", whole, 0, args), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
