from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap import Split, functional

# --- the value ----------------------------------------------------------------------------------


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


# --- split and balance --------------------------------------------------------------------------


def test_balance_fills_up_to_the_authors_class_counts(golden_split):
    g = golden_split
    generator = torch.Generator().manual_seed(0)
    indices = functional.balanced_indices(g["labels"], g["clean"], generator=generator)
    assert torch.equal(torch.bincount(g["labels"][indices]), g["balanced_class_counts"])


TAIL = torch.tensor([2000, 0, 500, 20, 40])


@pytest.mark.parametrize(
    ("growth", "draws"),
    [
        (None, [2000, 0, 2000, 2000, 2000]),
        (4.0, [2000, 0, 2000, 2000, 2000]),
        (2.0, [2000, 0, 1040, 1040, 1040]),
        (1.0, [2000, 0, 500, 20, 40]),
        (1.1, [2000, 0, 500, 158, 158]),
    ],
)
def test_small_classes_are_filled_up_to_one_level(growth, draws):
    assert functional.class_draws(TAIL, growth).tolist() == draws


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.floats(1, 30))
def test_draws_keep_to_the_bound_and_to_every_sample(counts, growth):
    given_counts = torch.tensor(counts)
    draws = functional.class_draws(given_counts, growth)
    assert (draws >= given_counts).all()
    assert ((draws == 0) == (given_counts == 0)).all()
    assert draws.sum() <= growth * given_counts.sum()
    weight = functional.draw_weight(given_counts, growth)
    there = given_counts > 0
    assert torch.allclose(weight[there] * draws[there], given_counts.max().float())
    assert (weight[~there] == 1).all()


def test_balance_within_a_bound_draws_each_clean_sample():
    labels = torch.arange(5).repeat_interleave(TAIL)
    clean = torch.arange(len(labels)) % 10 != 3
    indices = functional.balanced_indices(
        labels, clean, generator=torch.Generator().manual_seed(0), growth=1.5
    )
    counts = torch.bincount(labels[clean], minlength=5)
    assert torch.equal(
        torch.bincount(labels[indices], minlength=5), functional.class_draws(counts, 1.5)
    )
    assert torch.equal(indices.unique(), clean.nonzero().squeeze(1))


@given(st.integers(1, 200), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 9))
def test_splits_are_disjoint_and_cover_all(size, sigma_clean, share, seed):
    generator = torch.Generator().manual_seed(seed)
    ranks = [functional.normalised_rank(torch.rand(size, generator=generator)) for _ in range(2)]
    split = functional.split_by_rank(
        *ranks, sigma_clean=sigma_clean, sigma_triggered=share * sigma_clean
    )
    assert (split.clean.int() + split.triggered.int() + split.mixed.int() == 1).all()


def test_unreadable_samples_are_in_no_split():
    rank = torch.tensor([0.5, math.nan, 1.0], dtype=torch.float64)
    split = functional.split_by_rank(rank, rank)
    assert split.names() == ["clean", "unreadable", "triggered"]


@pytest.mark.parametrize(("clean", "triggered"), [(0.1, 0.2), (1.0, 0.1), (0.2, -0.1)])
def test_thresholds_that_would_overlap_are_refused(clean, triggered):
    rank = torch.tensor([0.5, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="sigma_triggered <= sigma_clean"):
        functional.split_by_rank(rank, rank, sigma_clean=clean, sigma_triggered=triggered)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 99))
def test_balance_keeps_every_clean_sample_and_evens_the_classes(labels, seed):
    given_labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(len(labels), generator=generator) < 0.7
    indices = functional.balanced_indices(given_labels, clean, generator=generator)
    assert set(indices.tolist()) == set(clean.nonzero().squeeze(1).tolist())
    counts = torch.bincount(given_labels[indices])
    assert len(set(counts[counts > 0].tolist())) <= 1


def test_corner_weight_is_highest_where_both_signs_agree():
    clip_rank = torch.tensor([1.0, 1.0, 0.1, math.nan], dtype=torch.float64)
    suspicious_rank = torch.tensor([0.01, 0.9, 0.01, math.nan], dtype=torch.float64)
    weight = functional.corner_weight(clip_rank, suspicious_rank, power=4.0)
    torch.testing.assert_close(weight, torch.tensor([0.99**4, 0.1**4, 0.099**4, 0.0]))
    even = functional.corner_weight(clip_rank, suspicious_rank, power=0.0)
    assert even.tolist() == [1, 1, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=60))
def test_members_are_listed_by_class_in_their_order(rows):
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    chosen = torch.tensor([kept for _, kept in rows], dtype=torch.bool)
    found = functional.members_by_class(labels, chosen)
    for label, members in enumerate(found):
        assert members.tolist() == [i for i, row in enumerate(rows) if row == (label, True)]
    assert sum(map(len, found)) == int(chosen.sum())
