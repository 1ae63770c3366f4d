"""Measure what the guard's own numbers cost: scores, split, sampler, table, loss, report, import.

    OMP_NUM_THREADS=1 python examples/benchmarks/lean_numbers.py
    OMP_NUM_THREADS=1 python examples/benchmarks/lean_numbers.py --only split order --sizes 1000000

prints a markdown table. Each piece of work is done in a process of its own, beside something known
that is measured in the same process: the ratio of the two depends little on the machine. No image
is read and no model is trained: the scores are made up, with one poisoned sample in a hundred.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measuring import HEAD, Measured, peak_of, seconds_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import RandomSampler, TensorDataset

SIZES = {  # samples that a piece of work is measured with, where nothing else is said
    "split": [10**6, 10**7],
    "nll": [10**5],
    "order": [10**6, 10**7],
    "epoch": [10**6],
    "table": [10**6, 10**7],
    "report": [10**5, 10**6],
    "loss": [128],
    "import": [1],
}


def scores(size: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Made-up labels and log-odds under CLIP and the suspicious model, with poison in class 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (size,), generator=generator)
    clip = torch.randn(size, generator=generator, dtype=torch.float64) * 3 - 4
    fast = torch.randn(size, generator=generator, dtype=torch.float64) * 3 - 2
    poison = torch.arange(size) % 100 == 0
    labels[poison] = 0
    clip[poison] += 12
    fast[poison] -= 12
    return labels, clip, fast


def judged(labels: Tensor, clip: Tensor, fast: Tensor) -> Any:
    """All that a scan makes of the scores, as a result without CLIP's logits."""
    from cgd_wrap import CGDConfig
    from cgd_wrap.split.clip_agreement import ClipAgreement
    from cgd_wrap.split.entropy_map import EntropyMap
    from cgd_wrap.split.estimate import estimate_poison
    from cgd_wrap.split.result import ScanResult
    from cgd_wrap.split.revision import hold_out, revised
    from cgd_wrap.split.suspicion import Suspicion

    config = CGDConfig()
    there = torch.ones(len(labels), dtype=torch.bool)
    placed = EntropyMap.from_scores(clip, fast, valid=there)
    split = placed.split(
        sigma_clean=config.sigma_clean, sigma_triggered=config.sigma_triggered,
        sigma_slow=config.sigma_slow,
    )  # fmt: skip
    ranks = placed.clip_rank, placed.suspicious_rank
    suspicion = Suspicion.of(labels, *ranks, split.triggered)
    split = revised(
        split, labels, *ranks, suspicion,
        corner_cut=config.corner_cut, poison_cut=config.poison_cut, auto=True,
    )  # fmt: skip
    return ScanResult(
        labels=labels, class_names=tuple(f"class {k}" for k in range(int(labels.max()) + 1)),
        entropy_map=placed, split=split,
        held_out=hold_out(labels, split.clean, config.holdout_fraction, config.seed),
        teacher=torch.empty(0, int(labels.max()) + 1),
        teachers=ClipAgreement(("CLIP",), (0.9,)),
        poison_estimate=estimate_poison(labels, suspicion, there),
        poison_probability=suspicion.probability.float(), config=config,
    )  # fmt: skip


def result_of(size: int, classes: int) -> Any:
    """A result with made-up logits of CLIP for the triggered samples."""
    from dataclasses import replace

    result = judged(*scores(size, classes))
    generator = torch.Generator().manual_seed(1)
    triggered = int(result.split.triggered.sum())
    return replace(result, teacher=torch.randn(triggered, classes, generator=generator))


# --- what is measured: each gives the work, and what it is compared with --------------------------

Works = tuple[Callable[[], Any], str, Callable[[], Any]]


def split_work(size: int, classes: int) -> Works:
    given = scores(size, classes)
    known = given[1].numpy()
    return (
        lambda: judged(*given),
        "numpy's stable argsort",
        lambda: np.argsort(known, kind="stable"),
    )


def nll_work(size: int, classes: int) -> Works:
    from cgd_wrap import functional

    classes = 1000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, classes, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    return (
        lambda: functional.label_nll(logits, labels),
        "cross entropy in float32",
        lambda: F.cross_entropy(logits, labels, reduction="none"),
    )


def order_work(size: int, classes: int) -> Works:
    from cgd_wrap import BalancedSampler

    sampler = BalancedSampler.for_result(result_of(size, classes))
    known = RandomSampler(range(size))
    next(iter(sampler))
    return lambda: next(iter(sampler)), "RandomSampler", lambda: next(iter(known))


def epoch_work(size: int, classes: int) -> Works:
    from cgd_wrap import BalancedSampler

    sampler = BalancedSampler.for_result(result_of(size, classes))
    known = RandomSampler(range(len(sampler)))

    def drawn(indices: Any) -> int:
        return sum(1 for _ in indices)

    return lambda: drawn(sampler), "RandomSampler", lambda: drawn(known)


def table_work(size: int, classes: int) -> Works:
    from cgd_wrap.train.tags import SampleTable

    result = result_of(size, classes)
    config = result.config.decided(trained=True)
    rank = result.entropy_map.clip_rank
    return lambda: SampleTable.for_result(result, config), "a copy of a rank", rank.clone


def report_work(size: int, classes: int) -> Works:
    from cgd_wrap.report import Report, write_report

    result = result_of(size, classes)
    ranks = result.entropy_map.clip_rank.tolist()
    subject: Any = SimpleNamespace(
        labels=result.labels, class_names=[f"class {c}" for c in range(classes)],
        dataset=TensorDataset(result.labels), raw_view=lambda: None,
    )  # fmt: skip

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_report(Report.of(result, subject), folder)

    def plain() -> None:
        csv.writer(io.StringIO()).writerows(zip(ranks, ranks, ranks, strict=True))

    return written, "csv of three columns", plain


def loss_work(size: int, classes: int) -> Works:
    from cgd_wrap import CGDLoss
    from cgd_wrap.train.tags import TAG

    result = result_of(50_000, classes)
    loss, plain = CGDLoss.for_result(result), nn.CrossEntropyLoss()
    index = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[:size]
    index[: size // 8] = result.split.triggered.nonzero().squeeze(1)[: size // 8]
    tags, labels = index + TAG, result.labels[index]
    leaf = torch.randn(size, classes, requires_grad=True)

    def step(criterion: Any, targets: Tensor) -> Callable[[], None]:
        def many() -> None:
            for _ in range(STEPS):
                criterion(leaf * 1.0, targets).backward()

        many()
        return many

    return step(loss, tags), "cross entropy", step(plain, labels)


STEPS = 200  # of a loss, as one takes too little time to be measured


def import_work(size: int, classes: int) -> Works:
    def imported(name: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

    return imported("cgd_wrap"), "import torch", imported("torch")


WORKS: dict[str, tuple[str, Callable[[int, int], Works]]] = {
    "split": ("suspicion and split", split_work),
    "nll": ("`label_nll`, 1000 classes", nll_work),
    "order": ("first index of an epoch", order_work),
    "epoch": ("all indices of an epoch", epoch_work),
    "table": ("table of samples", table_work),
    "report": ("report, without pictures", report_work),
    "loss": ("guarded loss, forward and backward", loss_work),
    "import": ("import of the package", import_work),
}


def measured(name: str, size: int, classes: int, tries: int) -> Measured:
    """Measure a piece of work in this process."""
    torch.set_num_threads(1)
    said, make = WORKS[name]
    work, against, known = make(size, classes)
    peak = peak_of(work)
    took, reference = [], []
    for _ in range(tries):  # by turns, so that both meet the same load of the machine
        took += seconds_of(work, 1)
        reference += seconds_of(known, 1)
    steps = STEPS if name == "loss" else 1
    return Measured(
        said, size, [t / steps for t in took], against, [t / steps for t in reference], peak
    )


def in_own_process(name: str, size: int, args: argparse.Namespace) -> Measured:
    """Measure a piece of work in a new process, so that no memory of another one is in the way."""
    options = ["--here", name, "--sizes", str(size), "--classes", str(args.classes)]
    command = [sys.executable, __file__, *options, "--tries", str(args.tries)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--sizes", nargs="+", type=int, help="samples, for all that is measured")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--here", choices=list(WORKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measured(args.here, args.sizes[0], args.classes, args.tries).as_dict()))
        return 0
    print(HEAD)
    for name in args.only:
        for size in args.sizes or SIZES[name]:
            print(in_own_process(name, size, args).row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
