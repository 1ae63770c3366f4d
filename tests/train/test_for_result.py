"""The public loss and sampler, built in one line from what a scan found."""

from __future__ import annotations

import pytest
import torch
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net
from torch import nn
from torch.utils.data import DataLoader

from cgd_wrap import BalancedSampler, CGDConfig, CGDGuard, CGDLoss


@pytest.fixture(scope="module", params=["default", "paper"])
def guard(request: pytest.FixtureRequest) -> CGDGuard:
    paper = {"suspicious_runs": 1, "suspicious_batch_size": 20, "allow_missing_classes": True}
    config = quick_config() if request.param == "default" else CGDConfig.paper(**paper)
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False
    ).scan()


def test_the_sampler_is_the_guards(guard: CGDGuard) -> None:
    own = BalancedSampler.for_result(guard.result, guard.config)
    of_guard = guard.sampler(seed=guard.config.seed)
    for _ in range(3):
        assert list(own) == list(of_guard)


def test_the_sampler_can_be_sharded(guard: CGDGuard) -> None:
    whole = list(BalancedSampler.for_result(guard.result))
    parts = [
        list(BalancedSampler.for_result(guard.result, num_replicas=2, rank=rank, drop_last=True))
        for rank in range(2)
    ]
    assert sorted(map(int, parts[0] + parts[1])) == sorted(map(int, whole[: 2 * len(parts[0])]))


def test_the_loss_is_the_guards(guard: CGDGuard) -> None:
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    own = CGDLoss.for_result(guard.result, criterion, guard.config)
    of_guard = guard.loss(criterion)
    batches = DataLoader(guard.dataset, 32, sampler=guard.sampler())
    for images, targets in batches:
        outputs = guard.model(images)
        assert torch.equal(own(outputs, targets), of_guard(outputs, targets))
        assert own.last_terms == of_guard.last_terms


def test_without_a_configuration_that_of_the_scan_counts(guard: CGDGuard) -> None:
    loss, of_guard = CGDLoss.for_result(guard.result), guard.loss()
    assert isinstance(loss.criterion, nn.CrossEntropyLoss)
    assert loss.config == of_guard.config
    assert torch.equal(loss.share, of_guard.share)
    assert list(BalancedSampler.for_result(guard.result)) == list(guard.sampler(guard.config.seed))
