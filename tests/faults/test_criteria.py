"""A criterion keeps its meaning under the guard, or is refused by name (row 58 of FAULTS.md)."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from linear_training import ORDERS, WEIGHT, inputs, linear, loss_of
from tiny_data import CLEAN, TABLE_CLASSES, TABLE_SIZE
from torch import Tensor, nn
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.trainer_pt_utils import LabelSmoother

from cgd_wrap.adapters.trainer_loss import TrainerLoss
from cgd_wrap.train.criteria import take_apart
from cgd_wrap.train.tags import TAG


class Focal(nn.CrossEntropyLoss):
    """As it is written everywhere: the constructor fixes the reduction, ``forward`` the mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__(reduction="none", **options)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        nll = super().forward(outputs, labels)
        return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


class Doubled(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 2 * super().forward(outputs, labels)


class Inside(nn.Module):
    """A criterion in another one, whose reduction nobody sees."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.inner = criterion

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.inner(outputs, labels)


class Counting(nn.Module):
    """Remembers how often it was called."""

    reduction, calls = "mean", 0

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, labels, reduction=self.reduction)


def hooked() -> nn.Module:
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_hook(lambda module, given, loss: 3 * loss)
    return criterion


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, weight=WEIGHT)


def with_reduction(outputs: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
    return F.cross_entropy(outputs, labels, reduction=reduction)


KEPT: dict[str, Any] = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weighted sum": nn.CrossEntropyLoss(reduction="sum", weight=WEIGHT, label_smoothing=0.1),
    "own forward, own mean": Focal(),
    "own forward, own mean, weighted": Focal(weight=WEIGHT),
    "own forward": Doubled(weight=WEIGHT),
    "own forward, sum": Doubled(reduction="sum"),
    "hook": hooked(),
    "sum inside": Inside(nn.CrossEntropyLoss(reduction="sum")),
    "mean inside": Inside(nn.CrossEntropyLoss()),
    "partial sum": functools.partial(F.cross_entropy, reduction="sum", weight=WEIGHT),
    "function with reduction": with_reduction,
    "lambda sum": lambda o, y: F.cross_entropy(o, y, reduction="sum"),
    "nll": nn.NLLLoss(weight=WEIGHT, reduction="sum"),
    "multi-margin": nn.MultiMarginLoss(reduction="sum"),
    "of probabilities": lambda p, y: -p.softmax(1).gather(1, y[:, None]).log().sum(),
    "compiled": torch.compile(nn.CrossEntropyLoss(reduction="sum"), backend="eager"),
    "timm's smoothing": timm.loss.LabelSmoothingCrossEntropy(0.1),
    "timm's asymmetric": timm.loss.AsymmetricLossSingleLabel(),
    "transformers' mean": fixed_cross_entropy,
    "transformers' sum": functools.partial(fixed_cross_entropy, num_items_in_batch=4),
}
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (nn.CrossEntropyLoss(reduction="none"), ValueError, "CrossEntropyLoss returns a loss"),
    "none in a function": (
        functools.partial(F.cross_entropy, reduction="none"), ValueError,
        'cross_entropy returns a loss of each sample.*Pass a criterion with reduction="mean"',
    ),
    "none inside": (Inside(nn.CrossEntropyLoss(reduction="none")), ValueError, "Inside returns"),
    "class weights inside": (weighted, ValueError, r"weighted is neither.*partial\(F.cross"),
    "an ignored class inside": (
        lambda o, y: F.cross_entropy(o, y, ignore_index=1), ValueError, "lambda.*ignored class",
    ),
    "flooding": (
        lambda o, y: (F.cross_entropy(o, y) - 0.1).abs() + 0.1, ValueError, "neither the mean nor",
    ),
    "neither": (lambda o, y: weighted(o, y).sqrt(), ValueError, "neither the mean nor the sum"),
    "of soft labels": (timm.loss.SoftTargetCrossEntropy(), TypeError, "SoftTargetCross.*by sample"),
    "of several views": (timm.loss.JsdCrossEntropy(), (TypeError, ValueError), "JsdCrossEntropy"),
    "of a Trainer": (LabelSmoother(), TypeError, "LabelSmoother can't be computed"),
    "of embeddings": (lambda o, y: F.cross_entropy(o @ torch.rand(64, 9), y), TypeError, "sample"),
}  # fmt: skip


def outputs_of(size: int = TABLE_SIZE) -> Tensor:
    return linear()(inputs(size)).detach().requires_grad_()


@pytest.mark.parametrize("name", KEPT)
def test_on_clean_samples_the_loss_is_the_criterion(name):
    """Row 58: scale, weights and forward are the user's, with ``normalise_by="batch"``."""
    loss = loss_of(KEPT[name], normalise_by="batch")
    outputs, labels = outputs_of(len(CLEAN)), loss.table.tensors["labels"][: len(CLEAN)]
    found = loss(outputs, torch.arange(len(CLEAN)) + TAG)
    alone = outputs.detach().requires_grad_()
    expected = KEPT[name](alone, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward()
    expected.backward()
    torch.testing.assert_close(outputs.grad, alone.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KEPT)
def test_plain_targets_get_the_criterion_itself(name):
    """Row 58: evaluation, and training batches without tags."""
    outputs, labels = outputs_of(), torch.arange(TABLE_SIZE) % TABLE_CLASSES
    loss = loss_of(KEPT[name])
    for mode in (True, False):
        assert torch.equal(loss.train(mode)(outputs, labels), KEPT[name](outputs, labels))


@pytest.mark.parametrize("name", REFUSED)
def test_a_criterion_that_cannot_be_kept_is_refused_when_the_loss_is_made(name):
    """Row 58."""
    criterion, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        loss_of(criterion)


@pytest.mark.parametrize("normalise_by", ["batch", "expectation"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_is_as_many_means(order, normalise_by):
    """Row 58: of unweighted samples, batch size times the mean, in each part."""
    index, outputs = torch.tensor(ORDERS[order]), outputs_of(16)
    mean, total = (
        loss_of(nn.CrossEntropyLoss(reduction=reduction), normalise_by=normalise_by)
        for reduction in ("mean", "sum")
    )
    torch.testing.assert_close(total(outputs, index + TAG), 16 * mean(outputs, index + TAG))
    for part, of_mean in zip(total.last_terms, mean.last_terms, strict=True):
        torch.testing.assert_close(part, 16 * of_mean)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("order", ORDERS)
def test_sums_of_parts_of_a_batch_add_up(order, weight):
    """Row 58: gradient accumulation of a sum, with ``normalise_by="expectation"``."""
    loss = loss_of(nn.CrossEntropyLoss(weight, reduction="sum"), normalise_by="expectation")
    index, outputs = torch.tensor(ORDERS[order]) + TAG, outputs_of(16)
    parts = zip(outputs.split(5), index.split(5), strict=True)
    torch.testing.assert_close(sum(itertools.starmap(loss, parts)), loss(outputs, index))


def test_untagged_samples_of_a_batch_are_summed_too():
    """Row 58."""
    loss = loss_of(nn.CrossEntropyLoss(WEIGHT, reduction="sum"), normalise_by="expectation")
    outputs, labels = outputs_of(10), torch.arange(10) % TABLE_CLASSES
    targets = torch.where(torch.arange(10) < 6, torch.arange(10) + TAG, labels)
    expected = loss(outputs[:6], targets[:6]) + loss.criterion(outputs[6:], labels[6:])
    torch.testing.assert_close(loss(outputs, targets), expected)


def test_trying_a_criterion_leaves_no_trace():
    """Row 58: neither in the criterion nor in the random streams; what it does later, stays."""
    criterion, state = Counting(), torch.get_rng_state()
    loss = loss_of(criterion)
    assert criterion.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
    loss(outputs_of(), torch.arange(TABLE_SIZE) + TAG)
    assert (criterion.calls, criterion.reduction) == (1, "mean")


def test_the_criterion_in_a_compiled_one_keeps_its_reduction():
    """Row 58: what is set on a copy of torch.compile's module reaches the module inside."""
    inner = Doubled()
    loss_of(torch.compile(inner, backend="eager"))(outputs_of(), torch.arange(TABLE_SIZE) + TAG)
    assert inner.reduction == "mean"


@pytest.mark.parametrize("classes", [2, 255, 256, 257, 1000])
def test_class_weights_are_noticed_among_any_number_of_classes(classes):
    """Row 58."""
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(0)) + 0.5
    found = take_apart(functools.partial(F.cross_entropy, weight=weight), classes)
    assert (found.weighted, found.reduction) == (True, "mean")
    with pytest.raises(ValueError, match="neither the mean"):
        take_apart(lambda o, y: F.cross_entropy(o, y, weight=weight), classes)


def test_a_guarded_criterion_is_guarded_once():
    """Row 58: a loop that calls protect again passes what it got before."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert loss_of(loss_of(criterion)).criterion is criterion


def test_the_trainer_takes_means_itself():
    """Row 58."""
    with pytest.raises(ValueError, match=r'reduction="sum" can.t be used in a Trainer.*"mean"'):
        TrainerLoss(loss_of(nn.CrossEntropyLoss(reduction="sum")))
