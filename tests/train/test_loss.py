from __future__ import annotations

import copy
import functools
import logging
import pickle
from typing import Any

import linear_training
import pytest
import torch
import torch.nn.functional as F
from launching import run_python
from linear_training import ORDERS, SMOOTHED, WEIGHT, inputs, linear, loss_of
from timm.loss import LabelSmoothingCrossEntropy
from tiny_data import CLEAN, MIXED, TABLE_CLASSES, TABLE_SIZE, TRIGGERED
from torch import Tensor, nn

from cgd_wrap import CGDConfig, CGDLoss, functional
from cgd_wrap.train.criteria import class_weight
from cgd_wrap.train.loss import clean_share
from cgd_wrap.train.tags import TAG, SampleTable


class Focal(nn.Module):
    """A criterion as users write them, with a weight that its mean is not divided by."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction
        self.register_buffer("weight", WEIGHT.clone())

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        nll = F.cross_entropy(outputs, labels, reduction="none")
        losses = self.weight[labels] * (1 - torch.exp(-nll)) ** 2 * nll
        return losses.mean() if self.reduction == "mean" else losses


class BatchNormalised(nn.Module):
    """A criterion that can't be taken apart."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs - outputs.mean(dim=0).item(), labels)


def squared_log_odds(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none").pow(2).mean()


CONFUSION = torch.eye(TABLE_CLASSES) * 0.9 + 0.02
CRITERIA = {
    "cross entropy": nn.CrossEntropyLoss(),
    "smoothed and weighted": SMOOTHED,
    "class ignored": nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1),
    "multi-margin": nn.MultiMarginLoss(weight=WEIGHT),
    "function": F.cross_entropy,
    "partial": functools.partial(F.cross_entropy, label_smoothing=0.2),
    "weighted partial": functools.partial(F.cross_entropy, weight=WEIGHT),
    "timm": LabelSmoothingCrossEntropy(0.1),
    "focal": Focal(),
    "product": lambda o, y: F.cross_entropy(o @ CONFUSION, y),  # autocast would take bf16
    "lambda": lambda o, y: squared_log_odds(o, y),
}


def outputs_of(size: int = TABLE_SIZE) -> Tensor:
    return linear()(inputs(size)).detach().requires_grad_()


# --- the base criterion -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("training", [True, False])
def test_untagged_targets_get_the_criterion_itself(name, training):
    outputs, labels = outputs_of(), torch.arange(TABLE_SIZE) % TABLE_CLASSES
    loss = loss_of(CRITERIA[name]).train(training)
    assert torch.equal(loss(outputs, labels), CRITERIA[name](outputs, labels))


@pytest.mark.parametrize("name", CRITERIA)
def test_clean_batches_get_the_criterion_on_their_labels(name):
    loss = loss_of(CRITERIA[name], normalise_by="batch")
    outputs, labels = outputs_of(len(CLEAN)), loss.table.tensors["labels"][: len(CLEAN)]
    found = loss(outputs, torch.arange(len(CLEAN)) + TAG)
    torch.testing.assert_close(found, CRITERIA[name](outputs, labels), rtol=1e-6, atol=1e-6)
    found.backward()
    alone = outputs.detach().requires_grad_()
    CRITERIA[name](alone, labels).backward()
    torch.testing.assert_close(outputs.grad, alone.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("criterion", [BatchNormalised(), lambda o, y: o.sum(dim=1)[:1]])
def test_a_criterion_that_cannot_be_taken_apart_is_refused(criterion):
    with pytest.raises(TypeError, match="sample by sample"):
        loss_of(criterion)(outputs_of(), torch.arange(TABLE_SIZE) + TAG)


def test_a_moved_criterion_is_computed_where_it_is():
    loss = loss_of(Focal()).double()
    assert loss.criterion.weight.dtype == torch.float64
    loss.criterion.weight.zero_()
    terms = loss.terms(outputs_of(), torch.arange(TABLE_SIZE) + TAG)
    assert terms.clean == 0


def test_the_users_criterion_is_left_as_it_is():
    criterion = Focal()
    loss_of(criterion)(outputs_of(), torch.arange(TABLE_SIZE) + TAG)
    assert criterion.reduction == "mean"


# --- the guarded part ---------------------------------------------------------------------------


def test_paper_preset_gives_the_authors_loss(golden_split, golden_loss):
    g, index = golden_split, golden_loss["index"]
    table = SampleTable(
        labels=g["labels"], clean=g["clean"], triggered=g["triggered"],
        triggered_weight=torch.ones(len(g["labels"])), teacher=g["clip_logits"][g["triggered"]],
    )  # fmt: skip
    loss = CGDLoss(table, clean_share(table, index), CGDConfig.paper())
    outputs = golden_loss["outputs"].clone().requires_grad_()
    found = loss(outputs, index + TAG)
    found.backward()
    torch.testing.assert_close(found, golden_loss["loss"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.grad, golden_loss["grad_outputs"], rtol=0, atol=1e-6)


def test_terms_are_those_of_the_formula():
    loss = loss_of(
        normalise_by="batch", temperature=2.0, guidance_weight=1.0, unlearning_weight=0.3
    )
    index = torch.tensor([3, 15, 22, 7, 12, 19, 0])
    table, outputs = loss.table.tensors, outputs_of(7)
    expected = functional.cgd_loss(
        outputs, table["labels"][index], table["teacher"][table["teacher_row"][index]],
        table["clean"][index], table["triggered"][index], alpha=1.0, beta=0.3, temperature=2.0,
        triggered_weight=table["triggered_weight"][index],
    )  # fmt: skip
    torch.testing.assert_close(loss(outputs, index + TAG), expected)
    torch.testing.assert_close(loss.last_terms.total, expected.detach())
    assert not loss.last_terms.clean.requires_grad


@pytest.mark.parametrize("criterion", [None, SMOOTHED])
def test_expectation_weighs_a_triggered_sample_against_a_clean_one(criterion):
    outputs, tags = outputs_of(), torch.arange(TABLE_SIZE) + TAG
    by_batch = loss_of(criterion, normalise_by="batch")
    by_expectation = loss_of(criterion, normalise_by="expectation")
    by_batch(outputs, tags)
    by_expectation(outputs, tags)
    table, batch, found = by_batch.table.tensors, by_batch.last_terms, by_expectation.last_terms
    by_class = class_weight(by_batch.criterion, outputs)
    clean = by_class[table["labels"][table["clean"]]].sum()
    push = table["triggered_weight"][table["triggered"]].sum()
    torch.testing.assert_close(found.clean, batch.clean)
    torch.testing.assert_close(found.guidance, batch.guidance * len(TRIGGERED) / clean)
    torch.testing.assert_close(found.unlearning, batch.unlearning * push / clean)


@pytest.mark.parametrize("normalise_by", ["batch", "expectation"])
@pytest.mark.parametrize("part", [CLEAN, TRIGGERED, MIXED])
def test_batches_of_one_kind_have_a_finite_loss_with_a_graph(part, normalise_by):
    loss, outputs = loss_of(normalise_by=normalise_by), outputs_of(len(part))
    found = loss(outputs, torch.tensor(list(part)) + TAG)
    found.backward()
    assert found.isfinite()
    assert outputs.grad.isfinite().all()
    assert bool((outputs.grad == 0).all()) == (part == MIXED)


def test_a_mixed_batch_adds_the_criterion_of_its_untagged_samples():
    loss = loss_of(SMOOTHED, normalise_by="batch")
    outputs, labels = outputs_of(10), torch.arange(10) % TABLE_CLASSES
    targets = torch.where(torch.arange(10) < 6, torch.arange(10) * 2 + TAG, labels)
    found = loss(outputs, targets)
    expected = loss(outputs[:6], targets[:6]) + loss.criterion(outputs[6:], labels[6:])
    torch.testing.assert_close(found, expected)
    assert loss.untagged_batches == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_type_of_outputs_is_computed_in_fp32(dtype):
    tags, outputs = torch.arange(TABLE_SIZE) + TAG, outputs_of().detach().to(dtype)
    outputs.requires_grad_()
    found = loss_of()(outputs, tags)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss_of()(outputs.detach().float().requires_grad_(), tags))
    found.backward()
    assert outputs.grad.dtype == dtype


@pytest.mark.parametrize("name", CRITERIA)
def test_autocast_changes_nothing(name):
    tags, outputs = torch.arange(TABLE_SIZE) + TAG, outputs_of()
    expected = loss_of(CRITERIA[name])(outputs, tags)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(CRITERIA[name])(outputs, tags)
    assert torch.equal(found, expected)


def test_channels_last_nets_train():
    net = nn.Sequential(nn.Conv2d(3, TABLE_CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.to(memory_format=torch.channels_last)
    images = torch.randn(TABLE_SIZE, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of()(net(images), torch.arange(TABLE_SIZE) + TAG)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_labels_are_those_of_the_tags():
    loss, index = loss_of(), torch.tensor([3, 15, 22])
    targets = torch.cat([index + TAG, torch.tensor([1, 4])])
    expected = [*loss.table.tensors["labels"][index].tolist(), 1, 4]
    assert loss.labels(targets).tolist() == expected
    assert loss.labels(targets[None])[0].tolist() == expected


# --- misuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_another_number_of_outputs_is_refused_with_both_shapes(training):
    loss, outputs = loss_of().train(training), torch.randn(TABLE_SIZE, 7, requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \[24, 7\].* expected \[B, 5\]"):
        loss(outputs, torch.arange(TABLE_SIZE) + TAG)


@pytest.mark.parametrize(
    "targets", [torch.full((4, TABLE_CLASSES), 0.2), torch.arange(4) + float(TAG)]
)
def test_soft_targets_in_training_are_refused(targets):
    with pytest.raises(ValueError, match="mixup"):
        loss_of()(outputs_of(4), targets)


def test_soft_targets_in_evaluation_get_the_criterion():
    soft = torch.full((4, TABLE_CLASSES), 0.2)
    loss, outputs = loss_of(), outputs_of(4)
    expected = F.cross_entropy(outputs, soft)
    assert torch.equal(loss.eval()(outputs, soft), expected)
    with torch.no_grad():
        assert torch.equal(loss.train()(linear()(inputs(4)), soft), expected)


def test_untagged_training_batches_are_warned_of_once_and_counted(caplog):
    loss, labels = loss_of(), torch.arange(4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loss(outputs_of(4), labels)
    assert loss.untagged_batches == 3
    assert len(caplog.records) == 1
    assert "unguarded" in caplog.text


def test_untagged_evaluation_is_not_warned_of(caplog):
    loss, labels = loss_of(strict=True), torch.arange(4)
    with caplog.at_level(logging.WARNING):
        loss.eval()(outputs_of(4), labels)
        loss.train()(outputs_of(4).detach(), labels)  # under no_grad, as in most loops
    assert loss.untagged_batches == 0
    assert not caplog.records


def test_strict_refuses_untagged_training_batches():
    with pytest.raises(ValueError, match="without tags"):
        loss_of(strict=True)(outputs_of(4), torch.arange(4))


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoothed and weighted", "function", "timm", "focal"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_give_the_same_loss(name, copied):
    loss, tags = loss_of(CRITERIA[name]), torch.arange(TABLE_SIZE) + TAG
    expected = loss(outputs_of(), tags)
    assert torch.equal(copied(loss)(outputs_of(), tags), expected)


def test_a_deep_copy_shares_the_table():
    loss = loss_of()
    assert copy.deepcopy(loss).table is loss.table


def test_nothing_of_the_table_is_in_the_state_dict():
    assert loss_of().state_dict() == {}
    assert list(loss_of(SMOOTHED).state_dict()) == ["weight"]
    assert not list(loss_of().buffers())


# --- checkpoints --------------------------------------------------------------------------------


class Nested(nn.Module):
    """A criterion whose own names meet those of the guarded loss."""

    def __init__(self, fill: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((TABLE_CLASSES,), fill))
        self.criterion = nn.CrossEntropyLoss(weight=torch.full((TABLE_CLASSES,), 2 * fill))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(outputs * self.weight, labels)


class Module(nn.Module):
    """A network and its criterion in one, as Lightning modules are."""

    def __init__(self, criterion: object) -> None:
        super().__init__()
        self.head, self.criterion = nn.Linear(2, TABLE_CLASSES), criterion


def weighted(fill: float) -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.full((TABLE_CLASSES,), fill))


@pytest.mark.parametrize("kept", [lambda loss: loss, copy.deepcopy])
@pytest.mark.parametrize("make", [weighted, Nested])
def test_checkpoints_of_guarded_and_unguarded_modules_fit_each_other(make, kept):
    plain, guarded = Module(make(1.0)), kept(Module(loss_of(make(3.0))))
    assert list(guarded.state_dict()) == list(plain.state_dict())
    guarded.load_state_dict(plain.state_dict())
    for name, value in guarded.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    guarded.load_state_dict(kept(Module(loss_of(make(5.0)))).state_dict())
    again = Module(make(0.0))
    again.load_state_dict(guarded.state_dict())
    expected = make(5.0).state_dict()
    assert all(torch.equal(value, expected[n]) for n, value in again.criterion.state_dict().items())


def test_names_that_do_not_fit_are_told_as_the_criterions():
    guarded = Module(loss_of(weighted(3.0)))
    state = {**guarded.state_dict(), "criterion.margin": torch.ones(1)}
    del state["criterion.weight"], state["head.bias"]
    before = set(state)
    found = guarded.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == ["criterion.weight", "head.bias"]
    assert found.unexpected_keys == ["criterion.margin"]
    assert set(state) == before  # the caller's own is left as it is


def test_a_pickled_loss_still_goes_by_the_criterions_names():
    loss = pickle.loads(pickle.dumps(loss_of(SMOOTHED)))
    assert list(loss.state_dict()) == ["weight"]
    loss.load_state_dict({"weight": torch.full((TABLE_CLASSES,), 7.0)})
    assert loss.criterion.weight.tolist() == [7.0] * TABLE_CLASSES


# --- gradients ----------------------------------------------------------------------------------


def gradient(loss: CGDLoss, index: Tensor, batch: Tensor) -> Tensor:
    net = linear()
    loss(net(batch), index + TAG).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("criterion", [None, SMOOTHED])
@pytest.mark.parametrize("micro_batches", [2, 4, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_accumulated_gradients_are_the_whole_batchs(order, micro_batches, criterion):
    loss = loss_of(criterion, normalise_by="expectation")
    index, batch = torch.tensor(ORDERS[order]), inputs(16)
    whole = gradient(loss, index, batch)
    parts = zip(index.chunk(micro_batches), batch.chunk(micro_batches), strict=True)
    mean = torch.stack([gradient(loss, i, b) for i, b in parts]).mean(dim=0)
    torch.testing.assert_close(mean, whole, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    run_python(linear_training.__file__, str(folder), processes=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalise_by", ["batch", "expectation"])
@pytest.mark.parametrize("order", ORDERS)
def test_ddp_gradients_are_the_whole_batchs(order, normalise_by, weighted, on_two_processes):
    criterion = SMOOTHED if weighted else None
    loss = loss_of(criterion, normalise_by=normalise_by)
    whole = gradient(loss, torch.tensor(ORDERS[order]), inputs(16))
    for found in on_two_processes:
        flat = found["gradients"][order, normalise_by, weighted]
        torch.testing.assert_close(flat, whole, rtol=1e-6, atol=1e-6)


def test_only_the_process_that_asks_the_sampler_tells_that_none_was_asked(on_two_processes):
    """Others may get their batches sent by it, as under Accelerate's ``dispatch_batches``."""
    assert [found["alarm"] for found in on_two_processes] == [True, False]
