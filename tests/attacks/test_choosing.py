"""Poison that is chosen by a ranking from outside."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.attacks import SIG, Attack, BadNets, LabelConsistent, LabelFlip, WaNet
from cgd_wrap.errors import CGDError
from cgd_wrap.models.small_resnet import small_resnet

Make = Callable[..., Any]
RANKED = [BadNets(rate=0.2), SIG(rate=0.4), LabelFlip(rate=0.2), WaNet(rate=0.2)]


@pytest.mark.parametrize("attack", RANKED, ids=lambda attack: type(attack).__name__)
@given(seed=st.integers(0, 1000))
def test_the_highest_scores_are_poisoned(attack: Attack, seed: int) -> None:
    scores = torch.rand(100, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(100) % 4
    chosen = attack.ranked_by(scores).select(labels, [])
    free = attack.candidates(labels)
    left = free[~torch.isin(free, chosen)]
    assert len(chosen) == attack.count(labels)
    assert torch.isin(chosen, free).all()
    assert (chosen.diff() > 0).all()
    assert scores[chosen].min() >= scores[left].max()


def test_equal_scores_are_taken_as_they_stand() -> None:
    labels = torch.arange(100) % 4
    chosen = BadNets(rate=0.05).ranked_by(torch.zeros(100)).select(labels, [])
    assert chosen.tolist() == [1, 2, 3, 5, 6]


def test_a_ranking_is_kept_by_the_copy_alone(pictures: Make) -> None:
    attack, base = BadNets(), pictures()
    ranked = attack.ranked_by(torch.arange(60.0))
    expected = [index for index in range(60) if index % 4][-6:]
    assert ranked.poison(base).poisoned.tolist() == expected
    assert pickle.loads(pickle.dumps(ranked)).poison(base).poisoned.tolist() == expected
    for other in (attack, replace(ranked, rate=0.1)):
        assert torch.equal(other.poison(base).poisoned, BadNets().poison(base).poisoned)


def test_covers_are_not_ranked(pictures: Make) -> None:
    poisoned = WaNet().ranked_by(torch.arange(60.0)).poison(pictures())
    assert len(poisoned.covered) == 12
    assert poisoned.covered.min() < 20
    assert not torch.isin(poisoned.covered, poisoned.poisoned).any()


@pytest.mark.parametrize("scores", [torch.zeros(59), torch.full((60,), math.nan)])
def test_scores_of_another_dataset(pictures: Make, scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"60 samples; pass ranked_by\(\) one number for each"):
        BadNets().ranked_by(scores).poison(pictures())


def test_what_is_perturbed_follows_the_ranking(pictures: Make, tmp_path: Any) -> None:
    base, network = pictures(), small_resnet(4, (4, 4, 4, 4))
    attack = LabelConsistent(rate=0.4, surrogate_epochs=1, steps=1)
    files = []
    for scores in (torch.arange(60.0), -torch.arange(60.0)):
        ranked = attack.ranked_by(scores)
        fitted = ranked.fit(base, network=network, cache_dir=tmp_path, progress=False)
        poisoned = fitted.poison(base)
        assert torch.equal(poisoned.poisoned, fitted.tensors["positions"])
        poisoned[int(poisoned.poisoned[0])]
        files.append(sorted(tmp_path.iterdir()))
        late = fitted.ranked_by(-scores).poison(base)
        with pytest.raises(CGDError, match=r"was not perturbed.*Call fit\(\)"):
            late[int(late.poisoned[0])]
    assert len(files[1]) == len(files[0]) + 1
