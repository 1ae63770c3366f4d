"""Find the thresholds of the split in two passes over scores that don't fit in memory, exactly.

    OMP_NUM_THREADS=1 python examples/benchmarks/streamed_thresholds.py --rows 10000000

The first pass counts the scores by their first PREFIX bits; the second keeps the scores that have
the first bits of a threshold, and sorts these few. Samples with the threshold's own score are told
apart by their index, as in memory. Scores are made up block by block, as a scan reads its units;
the memory doesn't grow with the rows, apart from the kept ones. --check compares with a whole sort.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
from measuring import peak_of

PREFIX = 20  # bits: 2^20 counters are 8 MB
BLOCK = 1 << 16  # rows of a block


def blocks(rows: int) -> Iterator[np.ndarray]:
    """Made-up log-odds against the labels, float64, block by block; the same at each pass."""
    for start in range(0, rows, BLOCK):
        generator = np.random.default_rng((0, start))
        yield generator.normal(-4, 3, size=min(BLOCK, rows - start))


def ordered(scores: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the scores, uint64."""
    bits = (scores + 0.0).view(np.int64)  # -0.0, which equals 0.0, becomes 0.0
    return bits.view(np.uint64) ^ ((bits >> 63) | np.int64(-(2**63))).view(np.uint64)


def thresholds(rows: int, shares: list[float]) -> list[tuple[float, int]]:
    """Score and index of the last sample whose rank is at most each share."""
    shift = np.uint64(64 - PREFIX)
    counts = np.zeros(1 << PREFIX, dtype=np.int64)
    for scores in blocks(rows):
        counts += np.bincount(ordered(scores) >> shift, minlength=len(counts))
    ends = counts.cumsum()
    places = [max(int(share * rows), 1) for share in shares]
    prefixes = np.searchsorted(ends, places)
    wanted = np.zeros(len(counts), dtype=bool)
    wanted[prefixes] = True
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for number, scores in enumerate(blocks(rows)):
        here = wanted[ordered(scores) >> shift].nonzero()[0]
        kept.append((scores[here], here + number * BLOCK))
    scores, indices = (np.concatenate(part) for part in zip(*kept, strict=True))
    found = []
    for place, prefix in zip(places, prefixes, strict=True):
        near = ordered(scores) >> shift == prefix
        order = np.argsort(scores[near], kind="stable")
        at = order[place - 1 - (ends[prefix] - counts[prefix])]
        found.append((float(scores[near][at]), int(indices[near][at])))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2, 0.5, 0.8, 0.9])
    parser.add_argument("--check", action="store_true", help="compare with a sort of all scores")
    args = parser.parse_args()
    found: list[tuple[float, int]] = []
    start = time.perf_counter()
    peak = peak_of(lambda: found.extend(thresholds(args.rows, args.shares)))
    seconds = time.perf_counter() - start
    rate = args.rows / seconds / 1e6
    print(f"{args.rows:,} rows, two passes: {seconds:.2f} s, {peak / 1e6:.0f} MB at the peak")
    print(f"{rate:.1f} million rows a second, with the time to make them up twice")
    for share, (score, index) in zip(args.shares, found, strict=True):
        print(f"rank {share:g}: score {score!r}, sample {index}")
    if args.check:
        scores = np.concatenate(list(blocks(args.rows)))
        order = np.argsort(scores, kind="stable")
        last = [int(order[max(int(share * args.rows), 1) - 1]) for share in args.shares]
        same = found == [(float(scores[index]), index) for index in last]
        print("the same as by a sort of all scores" if same else "NOT the same as by a sort")
        return not same
    return 0


if __name__ == "__main__":
    sys.exit(main())
