"""Wrong labels as honest data have them, for measurements: by chance, or by who gave them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KINDS = ("symmetric", "one-sided", "sloppy", "pairs")


def mislabelled(labels: Sequence[int], kind: str, share: float, seed: int) -> list[int]:
    """Give some samples another label.

    - "symmetric": so many of all samples get any other label;
    - "one-sided": so many of three classes' samples get the next class' label;
    - "sloppy": so many labels of one class are any label, and as many of others' become this one;
    - "pairs": so many of all samples get the label of their pair (0 and 1, 2 and 3, ...).

    Args:
        labels: right labels.
        kind: one of ``KINDS``.
        share: share of the samples, in [0, 1].
        seed: decides which.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of noise {kind!r}, expected one of {KINDS}")
    random = np.random.default_rng([seed, 5])
    right = np.array(labels)
    given, classes = right.copy(), int(right.max()) + 1
    hit = random.random(len(right)) < share
    if kind == "symmetric":
        given[hit] = (right[hit] + random.integers(1, classes, hit.sum())) % classes
    elif kind == "one-sided":
        hit &= np.isin(right, random.permutation(classes)[:3])
        given[hit] = (right[hit] + 1) % classes
    elif kind == "sloppy":
        one = random.integers(classes)
        out = hit & (right == one)
        given[out] = random.integers(0, classes, out.sum())
        given[(right != one) & (random.random(len(right)) < share / classes)] = one
    else:
        given[hit] = np.minimum(right[hit] ^ 1, classes - 1)
    return [int(label) for label in given]
