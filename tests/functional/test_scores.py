from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.split.entropy_map import EntropyMap

# --- against the authors' code ------------------------------------------------------------------


def canonical(rank: Tensor, score: Tensor) -> Tensor:
    """Ranks sorted within each group of equal scores, whose order NumPy leaves to the processor.

    So does the last bit of a float32 softmax: scores within four roundings of 1 count as equal.
    """
    order = score.argsort(stable=True)
    ascending = score[order]
    apart = ascending.diff() > 2.0**-21 * ascending[1:].clamp(min=1)
    group = torch.cat([torch.zeros(1, dtype=torch.bool), apart]).cumsum(0)
    result = torch.empty_like(rank)
    for members in order.split(torch.bincount(group).tolist()):
        result[members] = rank[members].sort().values
    return result


def test_paper_preset_reproduces_the_authors_ranks_and_splits(golden_split):
    g = golden_split
    found = EntropyMap.from_logits(
        g["clip_logits"], g["suspicious_logits"], g["labels"], reference_scores=True
    )
    for axis in ("clip", "suspicious"):
        score = functional.reference_label_nll(g[f"{axis}_logits"], g["labels"])
        ours = canonical(getattr(found, f"{axis}_rank"), score)
        torch.testing.assert_close(ours, canonical(g[f"{axis}_rank"], score), rtol=0, atol=1e-12)
    split = found.split()
    assert torch.equal(split.clean, g["clean"])
    assert torch.equal(split.triggered, g["triggered"])


def test_stable_scores_differ_from_the_authors_by_float32_ties_only(golden_split):
    g = golden_split
    for axis in ("clip", "suspicious"):
        nll = functional.label_nll(g[f"{axis}_logits"], g["labels"])
        theirs = functional.reference_label_nll(g[f"{axis}_logits"], g["labels"])
        torch.testing.assert_close(nll, theirs, rtol=1e-5, atol=1e-6)
        rank = functional.normalised_rank(nll)
        assert (rank - g[f"{axis}_rank"]).abs().max() <= 1.001 / len(rank)
    split = EntropyMap.from_logits(g["clip_logits"], g["suspicious_logits"], g["labels"]).split()
    assert torch.equal(split.clean, g["clean"])
    assert torch.equal(split.triggered, g["triggered"])


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [20.0, 110.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_logits_neither_tie_nor_overflow(margin, sign):
    steps = margin + torch.arange(100) * 1e-2
    logits = torch.stack([sign * steps, torch.zeros(100)], dim=1)
    labels = torch.zeros(100, dtype=torch.long)
    assert functional.label_nll(logits, labels).isfinite().all()
    flat = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    ranks = EntropyMap.from_logits(logits, flat, labels).clip_rank
    expected = torch.arange(100, 0, -1) if sign > 0 else torch.arange(1, 101)
    assert torch.equal(ranks, expected.double() / 100)


def test_nll_is_cross_entropy():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(50) % 7
    expected = F.cross_entropy(logits.double(), labels, reduction="none").float()
    torch.testing.assert_close(functional.label_nll(logits, labels), expected)
    assert functional.label_nll(logits.half(), labels).dtype == torch.float32


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60))
def test_ranks_are_a_permutation_ordered_by_value_then_index(values):
    rank = functional.normalised_rank(torch.tensor(values))
    size = len(values)
    places = (rank * size).round().long()
    assert sorted(places.tolist()) == list(range(1, size + 1))
    order = sorted(range(size), key=lambda i: (values[i], i))
    assert [order[place - 1] for place in places.tolist()] == list(range(size))


@given(st.permutations(range(40)))
def test_ranks_do_not_depend_on_the_order_of_the_samples(order):
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    shuffled = functional.normalised_rank(values[list(order)])
    assert torch.equal(shuffled, functional.normalised_rank(values)[list(order)])


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="index 1"):
        functional.normalised_rank(torch.tensor([0.0, math.nan]))


@given(
    st.lists(
        st.one_of(
            st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-52, 5e-324])
        ),
        max_size=40,
    )
)
def test_ranks_are_those_of_a_stable_sort_for_any_floats(values):
    """Also for scores that differ in their last digits alone, signed zeros and infinities."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = functional.normalised_rank(torch.tensor(values, dtype=torch.float64))
    expected = {index: (place + 1) / len(values) for place, index in enumerate(order)}
    assert ranks.tolist() == [expected[index] for index in range(len(values))]


def test_scores_in_blocks_are_those_of_each_row(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator) * 30
    labels = torch.randint(7, (50,), generator=generator)
    whole = functional.label_log_odds_against(logits, labels)
    for block in (1, 21):
        monkeypatch.setattr("cgd_wrap.functional.scores.BLOCK", block)
        assert torch.equal(functional.label_log_odds_against(logits, labels), whole)
    leaf = logits.requires_grad_()
    functional.label_nll(leaf, labels).sum().backward()
    expected = F.cross_entropy(leaf, labels, reduction="sum")
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(expected, leaf)[0])
