from __future__ import annotations

import dataclasses

import pytest
import torch

from cgd_wrap import Split


def mask(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_overlapping_masks_are_refused():
    with pytest.raises(ValueError, match="overlap in 1 sample"):
        Split(clean=mask(1, 0, 0), triggered=mask(1, 1, 0), mixed=mask(0, 0, 1))


def test_counts_and_names_say_where_each_sample_is():
    split = Split(
        clean=mask(1, 0, 0, 0, 1), triggered=mask(0, 1, 0, 0, 0), mixed=mask(0, 0, 1, 0, 0)
    )
    assert len(split) == 5
    assert split.counts() == {"clean": 2, "triggered": 1, "mixed": 1, "unreadable": 1}
    assert split.names() == ["clean", "triggered", "mixed", "unreadable", "clean"]


def test_frozen():
    split = Split(clean=mask(1), triggered=mask(0), mixed=mask(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.clean = mask(0)
