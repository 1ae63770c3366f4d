"""Measuring a piece of work: seconds of several tries, and the peak of memory above its inputs."""

from __future__ import annotations

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What was measured of a piece of work.

    Attributes:
        name: what was done.
        size: number of samples.
        seconds: of each try.
        against: what the ratio compares with.
        reference: seconds of each try of that, in the same run.
        peak: bytes at the peak, above what was there before the work.
    """

    name: str
    size: int
    seconds: list[float]
    against: str
    reference: list[float]
    peak: int

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return asdict(self)

    def row(self) -> str:
        """A row of a markdown table, under :data:`HEAD`."""
        median = statistics.median(self.seconds)
        times = " / ".join(shown(t) for t in (min(self.seconds), median, max(self.seconds)))
        ratio = median / statistics.median(self.reference)
        a_sample = f"{self.peak / self.size:.0f}" if self.size > 10_000 else "–"
        return (
            f"| {self.name} | {self.size:,} | {times} | {a_sample} | {ratio:.3g} x {self.against} |"
        )


HEAD = """| what | samples | min / median / max | bytes a sample at the peak | ratio of medians |
|---|---|---|---|---|"""


def shown(seconds: float) -> str:
    """Seconds with a unit, to three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def seconds_of(work: Callable[[], Any], tries: int) -> list[float]:
    """Seconds of each of several tries."""
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        made = work()
        found.append(time.perf_counter() - start)
        del made
    return found


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes of resident memory that the work needs at its peak, above what is there before."""
    if not sys.platform.startswith("linux"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A figure of this process' memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the system doesn't tell {name}")
