from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cgd_wrap import metrics
from cgd_wrap.functional import Split
from cgd_wrap.split.entropy_map import EntropyMap

NUM_CLASSES = 4
classes = st.integers(0, NUM_CLASSES - 1)


class Reader(nn.Module):
    """Reads the class off the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return -(images[:, 0, 0, 0, None] - torch.arange(NUM_CLASSES)).abs()


def images_of(codes: list[int] | Tensor) -> Tensor:
    return torch.as_tensor(codes, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)


def data_of(codes: list[int], labels: list[int]) -> TensorDataset:
    return TensorDataset(images_of(codes), torch.tensor(labels))


CODES, LABELS = [0, 1, 2, 3, 1, 1, 0], [0, 1, 2, 3, 0, 2, 3]


# --- backdoor figures ---------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(classes, classes)), target=classes)
def test_shares_against_counting(pairs: list[tuple[int, int]], target: int) -> None:
    predictions = torch.tensor([p for p, _ in pairs], dtype=torch.int64)
    labels = torch.tensor([y for _, y in pairs], dtype=torch.int64)

    def share(hits: list[bool]) -> Any:
        return pytest.approx(sum(hits) / len(hits) if hits else math.nan, nan_ok=True)

    assert metrics.clean_accuracy(predictions, labels) == share([p == y for p, y in pairs])
    assert metrics.robust_accuracy(predictions, labels) == share([p == y for p, y in pairs])
    hits = [p == target for p, _ in pairs]
    assert metrics.attack_success_rate(predictions, target) == share(hits)
    natural = [p == target for p, y in pairs if y != target]
    assert metrics.natural_rate(predictions, labels, target) == share(natural)


def test_evaluate_backdoor() -> None:
    #          right: 0, 1, 2, 3;  non-target called 1: label 0 and label 2 of 6
    clean = data_of(CODES, LABELS)
    #          called 1: labels 0 and 2; right: 3; the last is of the target class: left out
    triggered = data_of([1, 1, 3, 0, 1], [0, 2, 3, 2, 1])
    figures = metrics.evaluate_backdoor(Reader(), clean, triggered, 1, batch_size=2)
    assert figures.as_dict() == pytest.approx(
        {
            "clean_accuracy": 4 / 7,
            "attack_success_rate": 2 / 4,
            "robust_accuracy": 1 / 4,
            "natural_rate": 2 / 6,
        }
    )
    assert json.loads(json.dumps(figures.as_dict())) == figures.as_dict()


# --- detection figures --------------------------------------------------------------------------


def brute_force_auroc(scores: list[float], positive: list[bool]) -> float:
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, is_high in zip(scores, positive, strict=True)
        if is_high
        for low, is_low in zip(scores, positive, strict=True)
        if not is_low
    ]
    return sum(wins) / len(wins) if wins else math.nan


@given(samples=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40))
def test_auroc_against_all_pairs(samples: list[tuple[int, bool]]) -> None:
    scores, positive = [score / 7 for score, _ in samples], [flag for _, flag in samples]
    got = metrics.auroc(torch.tensor(scores), torch.tensor(positive, dtype=torch.bool))
    assert got == pytest.approx(brute_force_auroc(scores, positive), nan_ok=True)


def test_auroc_extremes() -> None:
    scores, positive = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 0, 1, 1]).bool()
    assert metrics.auroc(scores, positive) == 1
    assert metrics.auroc(-scores, positive) == 0
    assert metrics.auroc(torch.ones(4), positive) == 0.5
    assert math.isnan(metrics.auroc(scores, torch.ones(4).bool()))
    assert math.isnan(metrics.auroc(scores, torch.zeros(4).bool()))


def test_auroc_of_many_is_exact() -> None:
    size = 400_000
    scores = torch.arange(size, dtype=torch.float64)
    positive = torch.zeros(size, dtype=torch.bool)
    positive[-1] = positive[0] = True
    assert metrics.auroc(scores, positive) == 0.5


def map_of(clip_rank: list[float], suspicious_rank: list[float]) -> EntropyMap:
    clip, suspicious = (torch.tensor(r, dtype=torch.float64) for r in (clip_rank, suspicious_rank))
    return EntropyMap(clip.float(), suspicious.float(), clip, suspicious)


samples = st.lists(
    st.tuples(
        st.sampled_from(["clean", "triggered", "mixed"]),
        st.booleans(),
        st.integers(1, 9),
        st.integers(1, 9),
    ),
    max_size=30,
)


@given(rows=samples)
def test_detection_against_counting(rows: list[tuple[str, bool, int, int]]) -> None:
    split = Split(
        *(
            torch.tensor([row[0] == name for row in rows], dtype=torch.bool)
            for name in ("clean", "triggered", "mixed")
        )
    )
    poisoned = [row[1] for row in rows]
    clip, suspicious = [row[2] / 9 for row in rows], [row[3] / 9 for row in rows]
    figures = metrics.detection_figures(
        map_of(clip, suspicious), split, torch.tensor(poisoned, dtype=torch.bool)
    )

    def share(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    def count(name: str) -> int:
        return sum(row[1] for row in rows if row[0] == name)

    expected = {
        "poison_left_in_clean": share(count("clean"), sum(poisoned)),
        "poison_in_triggered": share(count("triggered"), sum(poisoned)),
        "precision": share(count("triggered"), sum(row[0] == "triggered" for row in rows)),
        "auroc_clip": brute_force_auroc(clip, poisoned),
        "auroc_suspicious": brute_force_auroc([-rank for rank in suspicious], poisoned),
    }
    assert figures.as_dict() == pytest.approx(expected, nan_ok=True)


def test_directions_and_unreadable_samples() -> None:
    nan = math.nan
    entropy_map = map_of([0.25, 0.5, 0.75, 1.0, nan], [1.0, 0.75, 0.5, 0.25, nan])
    split = Split(*(torch.arange(5) == index for index in (0, 3, 1)))
    poisoned = torch.tensor([False, False, True, True, True])
    figures = metrics.detection_figures(entropy_map, split, poisoned)
    assert (figures.auroc_clip, figures.auroc_suspicious) == (1.0, 1.0)
    assert figures.poison_in_triggered == pytest.approx(1 / 3)
    assert figures.precision == 1
