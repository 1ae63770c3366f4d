from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap import functional
from cgd_wrap.functional.loss_terms import _plain_sums, _Total


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


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_that_is_written_out_is_that_of_the_formula_and_has_its_own(temperature):
    generator = torch.Generator().manual_seed(0)
    outputs, clip = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    shares = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    shares[:, 2] = shares[1:, 3] = 0
    given = torch.arange(6) % 4, clip, shares, temperature, 1e-6
    outputs.requires_grad_()
    total, terms = _Total.apply(outputs, *given)
    formula = torch.stack(_plain_sums(outputs, *given))
    torch.testing.assert_close(terms, formula.detach())
    torch.testing.assert_close(total, formula.sum())
    assert torch.autograd.gradcheck(lambda o: _Total.apply(o, *given)[0], outputs)
    assert torch.autograd.gradgradcheck(lambda o: _Total.apply(o, *given)[0], outputs)


def test_functions_of_torch_can_take_the_gradient():
    outputs, clip = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    clean = torch.arange(5) < 3

    def loss(given):
        return functional.cgd_loss(
            given, torch.arange(5) % 3, clip, clean, ~clean, alpha=1.0, beta=0.5, temperature=1.0
        )

    found = torch.func.grad(loss)(outputs)
    leaf = outputs.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(found, leaf.grad)
