"""A small poisoned training set with hostile names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cgd_wrap.functional import Split
from cgd_wrap.report import Report
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import estimate_poison
from cgd_wrap.split.result import ScanResult
from cgd_wrap.split.suspicion import Suspicion

NAMES = [
    "<script>alert(1)</script>",
    "evil \u202egpj.exe",
    "line\nbreak",
    '=HYPERLINK("http://x")',
    "{{ 7*7 }}{% raw %}",
    "a & b \"quoted\" 'too'",
]


@dataclass(frozen=True)
class Scan:
    entropy_map: EntropyMap
    split: Split
    labels: Tensor
    poisoned: Tensor

    def result(self, **changes: Any) -> ScanResult:
        """What a scan would hand on."""
        return result_of(self.entropy_map, self.labels, **changes)

    def report(self, **changes: Any) -> Report:
        return Report(self.result(), NAMES, **changes)


class Images:
    """PIL images and float tensors in turn; every seventh is unreadable."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> object:
        if index % 7 == 0:
            raise OSError("broken file")
        if index % 2:
            return Image.new("RGB", (300, 200), (index % 256, 80, 160))
        return torch.full((3, 16, 16), 0.5)


def result_of(entropy_map: EntropyMap, labels: Tensor, **changes: Any) -> ScanResult:
    """The outcome of a scan by the thresholds alone, with a suspicion."""
    split = entropy_map.split()
    ranks = entropy_map.clip_rank, entropy_map.suspicious_rank
    suspicion = Suspicion.of(labels, *ranks, split.triggered)
    return ScanResult(
        **{
            "labels": labels, "class_names": tuple(NAMES),
            "entropy_map": entropy_map, "split": split,
            "held_out": torch.zeros_like(split.clean),
            "teacher": torch.zeros(int(split.triggered.sum()), len(NAMES)),
            "teachers": ClipAgreement(("CLIP",), (0.8,)),
            "poison_estimate": estimate_poison(labels, suspicion, sum(ranks).isfinite()),
            "poison_probability": suspicion.probability.float(),
            **changes,
        }
    )  # fmt: skip


def make_scan(count: int, unreadable: tuple[int, ...] = ()) -> Scan:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(NAMES), (count,), generator=generator)
    poisoned = torch.arange(count) % 20 == 3
    labels[poisoned] = 0
    clip = torch.randn(count, generator=generator).double() * 3 + 8 * poisoned
    suspicious = torch.randn(count, generator=generator).double() * 2 - 8 * poisoned
    valid = torch.ones(count, dtype=torch.bool)
    valid[list(unreadable)] = False
    entropy_map = EntropyMap.from_scores(clip, suspicious, valid=valid)
    return Scan(entropy_map, entropy_map.split(), labels, poisoned)
