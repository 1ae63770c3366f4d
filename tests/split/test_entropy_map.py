from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch

from cgd_wrap import EntropyMap
from cgd_wrap.errors import DatasetError


def random_scores(size: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.randn(2, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scores[0], scores[1]


def test_unreadable_samples_are_nan_and_do_not_count():
    clip, suspicious = random_scores(10)
    valid = torch.ones(10, dtype=torch.bool)
    valid[[2, 7]] = False
    clip[2] = math.nan
    found = EntropyMap.from_scores(clip, suspicious, valid=valid)
    for column in vars(found).values():
        assert torch.equal(column.isnan(), ~valid)
    assert len(found) == 10
    assert found.clip_rank[valid].sort().values.tolist() == [k / 8 for k in range(1, 9)]
    split = found.split()
    assert split.counts()["unreadable"] == 2
    assert split.names()[2] == split.names()[7] == "unreadable"


def test_frozen():
    found = EntropyMap.from_scores(*random_scores())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.clip_rank = found.suspicious_rank


@pytest.mark.parametrize("axis", ["clip", "suspicious"])
def test_flat_axis_is_refused(axis):
    clip, suspicious = random_scores()
    flat = torch.full_like(clip, -1.0)
    scores = (flat, suspicious) if axis == "clip" else (clip, flat)
    with pytest.raises(DatasetError, match=f"same {axis} score"):
        EntropyMap.from_scores(*scores).split()


@pytest.mark.parametrize(("axis", "tied"), [("clip", slice(70, 90)), ("suspicious", slice(10, 30))])
def test_ties_across_a_threshold_are_warned_of(axis, tied, caplog):
    ordered = torch.arange(100, dtype=torch.float64) / 20
    with_ties = ordered.clone()
    with_ties[tied] = ordered[tied.start]
    scores = (with_ties, ordered) if axis == "clip" else (ordered, with_ties)
    with caplog.at_level(logging.WARNING):
        EntropyMap.from_scores(*scores).split()
    assert len(caplog.records) == 1
    assert f"20.0% of the samples have the same {axis} score" in caplog.text


def test_ties_on_one_side_of_the_thresholds_are_harmless(caplog):
    scores = torch.arange(100, dtype=torch.float64) / 20
    scores[40:60] = scores[40]
    with caplog.at_level(logging.WARNING):
        EntropyMap.from_scores(scores, scores.flip(0)).split()
    assert not caplog.records


def test_thresholds_are_passed_on():
    found = EntropyMap.from_scores(*random_scores())
    counts = found.split(sigma_clean=0.0, sigma_triggered=0.0).counts()
    assert counts == {"clean": 100, "triggered": 0, "mixed": 0, "unreadable": 0}
    with pytest.raises(ValueError, match="sigma_triggered <= sigma_clean"):
        found.split(sigma_clean=0.1, sigma_triggered=0.2)
