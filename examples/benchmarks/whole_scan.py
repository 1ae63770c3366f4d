"""Measure whole scans: beside the same work as the paper's code does it, and by several processes.

    OMP_NUM_THREADS=1 python examples/benchmarks/whole_scan.py
    OMP_NUM_THREADS=1 python examples/benchmarks/whole_scan.py --sizes 10000 --processes 1 2 3

prints a markdown table. Both ways score images in memory by the same small network in place of
CLIP and by the same suspicious model, and end with ranks, the split and the balanced indices. The
paper's code does it by one process in fp32, in batches of 256, with a Python object for each sample
(after its description in the paper and its public code; written anew). Ours keeps a cache as well,
so that it can be interrupted. Images are read for each of the two models, as in the paper's code.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from measuring import HEAD, Measured, peak_of
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cgd_wrap import CGDConfig, CGDGuard

CLASSES, KEPT = 10, 512
SIGMA_CLEAN, SIGMA_TRIGGERED = 0.2, 0.1


class InMemory(Dataset[Any]):
    """Random images of 32 px with labels, as torchvision's data sets give them."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (KEPT, 32, 32, 3), generator=generator)
        self.images = [Image.fromarray(image) for image in images.to(torch.uint8).numpy()]
        self.transform = transforms.ToTensor()
        self.targets = [index % CLASSES for index in range(size)]
        self.classes = [f"kind {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index % KEPT]), self.targets[index]


def network(seed: int) -> nn.Module:
    """A small convolutional network."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    ).eval()  # fmt: skip


class Judge:
    """A zero-shot classifier that is a small network."""

    def __init__(self) -> None:
        self.network = network(0)

    def fingerprint(self) -> str:
        """Stand for all that the classifier does."""
        return "a small network"

    def logits(self, images: Tensor) -> Tensor:
        """Score the classes."""
        with torch.no_grad():
            logits: Tensor = self.network(images)
        return logits


def guarded(size: int, folder: str, model: nn.Module) -> None:
    """A scan of ours."""
    guard = CGDGuard(
        model, InMemory(size), clip=Judge(), suspicious=model, cache_dir=folder, progress=False,
        config=CGDConfig(sigma="fixed", allow_missing_classes=True),
    )  # fmt: skip
    guard.scan()


def one_by_one(size: int, folder: str, model: nn.Module) -> None:
    """The same work with a Python object for each sample."""
    data, judge = InMemory(size), Judge()
    entropies: list[list[float]] = []
    for score in (judge.logits, model):
        of_pass: list[float] = []
        for images, labels in DataLoader(data, 256):
            with torch.no_grad():
                logits = score(images)
            for row, label in zip(logits, labels, strict=True):
                of_pass.append(-torch.log(F.softmax(row, dim=0)[label]).item())
        entropies.append(of_pass)
    ranks: dict[int, list[float]] = {index: [] for index in range(size)}
    for of_pass in entropies:
        for place, index in enumerate(sorted(range(size), key=of_pass.__getitem__)):
            ranks[index].append((place + 1) / size)
    clean = [
        i for i, (clip, own) in ranks.items() if clip <= 1 - SIGMA_CLEAN and own >= SIGMA_CLEAN
    ]
    triggered = [
        i for i, (clip, own) in ranks.items() if clip > 1 - SIGMA_TRIGGERED or own < SIGMA_TRIGGERED
    ]
    members: dict[int, list[int]] = {}
    for index in clean:
        members.setdefault(data.targets[index], []).append(index)
    largest = max(map(len, members.values()))
    balanced = [i for of_class in members.values() for i in random.choices(of_class, k=largest)]
    found = {"clean": balanced, "triggered": triggered, "ranks": ranks}
    Path(folder, "scores.json").write_text(json.dumps(found))


def timed(work: Any, *arguments: Any) -> float:
    """Seconds of one try, into a folder that is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        work(arguments[0], folder, *arguments[1:])
        return time.perf_counter() - start


def seconds_by(processes: int, size: int) -> float:
    """Seconds of a scan of ours by several processes, without their start."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launch, "--standalone", __file__, "--here", folder, "--sizes", str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return max(float(line.split()[1]) for line in done.stdout.splitlines() if "took" in line)


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger("cgd_wrap").setLevel(logging.ERROR)  # random networks know no classes
    model = network(1)
    if args.here:
        PartialState(cpu=True).wait_for_everyone()
        start = time.perf_counter()
        guarded(args.sizes[0], args.here, model)
        print(f"took {time.perf_counter() - start}")
        return
    timed(guarded, 2000, model)  # imports
    print(HEAD)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_of(lambda size=size, folder=folder: guarded(size, folder, model))
        ours, theirs = [], []
        for _ in range(args.tries):
            ours.append(timed(guarded, size, model))
            theirs.append(timed(one_by_one, size, model))
        print(
            Measured("a whole scan", size, ours, "the paper's way", theirs, peak).row(), flush=True
        )
    size = args.sizes[-1]
    took: dict[int, list[float]] = {number: [] for number in args.processes}
    for _ in range(args.tries):  # by turns
        for number in args.processes:
            took[number].append(seconds_by(number, size))
    for number, seconds in took.items():
        said = f"a whole scan by {number} processes"
        print(Measured(said, size, seconds, "one process", took[args.processes[0]], 0).row())
    if took:
        print(f"\n{torch.get_num_threads()} threads a process, "
              f"{statistics.median(took[args.processes[0]]):.1f} s by one")  # fmt: skip


if __name__ == "__main__":
    main()
