from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
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


def test_balance_fills_up_to_the_authors_class_counts(golden_split):
    g = golden_split
    generator = torch.Generator().manual_seed(0)
    indices = functional.balanced_indices(g["labels"], g["clean"], generator=generator)
    assert torch.equal(torch.bincount(g["labels"][indices]), g["balanced_class_counts"])


def test_loss_and_gradient_are_the_authors(golden_split, golden_loss):
    g, index = golden_loss, golden_loss["index"]
    outputs = g["outputs"].clone().requires_grad_()
    terms = functional.cgd_loss_terms(
        outputs, golden_split["labels"][index], golden_split["clip_logits"][index],
        golden_split["clean"][index], golden_split["triggered"][index],
        alpha=5e-4, beta=0.025, temperature=3.0,
    )  # fmt: skip
    terms.total.backward()
    torch.testing.assert_close(terms.total, g["loss"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(terms.clean, g["clean_ce"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(terms.unlearning, 0.025 * g["log_p"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.grad, g["grad_outputs"], rtol=0, atol=1e-6)


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


# --- split and balance --------------------------------------------------------------------------


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
@settings(deadline=None)
def test_balance_keeps_every_clean_sample_and_evens_the_classes(labels, seed):
    given_labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(len(labels), generator=generator) < 0.7
    indices = functional.balanced_indices(given_labels, clean, generator=generator)
    assert set(indices.tolist()) == set(clean.nonzero().squeeze(1).tolist())
    counts = torch.bincount(given_labels[indices])
    assert len(set(counts[counts > 0].tolist())) <= 1


# --- loss ---------------------------------------------------------------------------------------


def oracle(outputs, labels, clip, clean, triggered, alpha, beta, temperature, weight) -> float:
    """The loss, sample by sample, in plain Python floats."""

    def log_softmax(row: list[float], t: float = 1.0) -> list[float]:
        scaled = [v / t for v in row]
        top = max(scaled)
        norm = top + math.log(sum(math.exp(v - top) for v in scaled))
        return [v - norm for v in scaled]

    ce, kl, repel, weights = [], [], [], []
    for i, row in enumerate(outputs.tolist()):
        log_p = log_softmax(row)[labels[i]]
        if clean[i]:
            ce.append(-log_p)
        if triggered[i]:
            q, p = log_softmax(row, temperature), log_softmax(clip[i].tolist(), temperature)
            kl.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            repel.append(float(weight[i]) * math.log(math.exp(log_p) + 1e-6))
            weights.append(float(weight[i]))

    def mean(values: list[float], total: float) -> float:
        return sum(values) / total if total else 0.0

    return (
        mean(ce, len(ce))
        + alpha * temperature**2 * mean(kl, len(kl))
        + beta * mean(repel, sum(weights))
    )


@given(
    st.integers(0, 9999), st.integers(1, 12), st.integers(2, 6),
    st.floats(0, 2), st.floats(0, 2), st.floats(0.5, 5),
)  # fmt: skip
@settings(deadline=None)
def test_loss_agrees_with_a_loop_over_samples(seed, size, classes, alpha, beta, temperature):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(size, classes, generator=generator) * 4
    clip = torch.randn(size, classes, generator=generator) * 4
    labels = torch.randint(classes, (size,), generator=generator)
    part = torch.randint(3, (size,), generator=generator)
    weight = torch.rand(size, generator=generator)
    loss = functional.cgd_loss(
        outputs, labels, clip, part == 0, part == 1,
        alpha=alpha, beta=beta, temperature=temperature, triggered_weight=weight,
    )  # fmt: skip
    expected = oracle(outputs, labels, clip, part == 0, part == 1, alpha, beta, temperature, weight)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.permutations(range(12)))
@settings(deadline=None)
def test_loss_does_not_depend_on_the_order_in_the_batch(order):
    generator = torch.Generator().manual_seed(0)
    outputs, clip = torch.randn(2, 12, 5, generator=generator)
    labels = torch.randint(5, (12,), generator=generator)
    clean, triggered = torch.arange(12) < 6, torch.arange(12) > 8
    options = {"alpha": 1.0, "beta": 0.1, "temperature": 2.0}
    one = functional.cgd_loss(outputs, labels, clip, clean, triggered, **options)
    shuffled = (t[list(order)] for t in (outputs, labels, clip, clean, triggered))
    torch.testing.assert_close(functional.cgd_loss(*shuffled, **options), one)


@pytest.mark.parametrize("part", ["clean", "triggered", "mixed"])
def test_batches_of_one_kind_have_a_finite_loss_with_a_graph(part):
    outputs = torch.randn(4, 3, requires_grad=True)
    yes, no = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    loss = functional.cgd_loss(
        outputs, torch.tensor([0, 1, 2, 0]), torch.randn(4, 3),
        yes if part == "clean" else no, yes if part == "triggered" else no,
        alpha=1.0, beta=1.0, temperature=1.0,
    )  # fmt: skip
    loss.backward()
    assert outputs.grad.isfinite().all()
    assert (loss == 0).item() == (part == "mixed")
    assert bool((outputs.grad == 0).all()) == (part == "mixed")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_computed_in_fp32(dtype):
    outputs = (torch.randn(8, 5) * 10).to(dtype)
    labels, clip = torch.arange(8) % 5, torch.randn(8, 5)
    clean = torch.arange(8) < 4
    options = {"alpha": 1.0, "beta": 1.0, "temperature": 1.0}
    loss = functional.cgd_loss(outputs, labels, clip, clean, ~clean, **options)
    assert loss.dtype == torch.float32
    wide = functional.cgd_loss(outputs.float(), labels, clip, clean, ~clean, **options)
    assert torch.equal(loss, wide)


def test_corner_weight_is_highest_where_both_signs_agree():
    clip_rank = torch.tensor([1.0, 1.0, 0.1, math.nan], dtype=torch.float64)
    suspicious_rank = torch.tensor([0.01, 0.9, 0.01, math.nan], dtype=torch.float64)
    weight = functional.corner_weight(clip_rank, suspicious_rank, power=4.0)
    torch.testing.assert_close(weight, torch.tensor([0.99**4, 0.1**4, 0.099**4, 0.0]))
    even = functional.corner_weight(clip_rank, suspicious_rank, power=0.0)
    assert even.tolist() == [1, 1, 1, 1]
