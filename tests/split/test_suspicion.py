"""Suspected classes, and what they let back into the clean split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from made_up_maps import (
    PER_CLASS,
    attacked_map,
    denied_map,
    first_of,
    honest_map,
    names,
    partly_fast_map,
    suspects,
    suspicion_of,
    wrong_labels,
)

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.functional import corner_weight, split_by_rank
from cgd_wrap.split.estimate import estimate_poison
from cgd_wrap.split.two_kinds import probability_of_poison
from cgd_wrap.split.wrong_labels import WrongLabels

AT_THE_TIP, CHANCE = DEFAULT.far_corner_share, DEFAULT.chance_suspicion
POWER, TIP = DEFAULT.corner_power, DEFAULT.far_corner


def test_independent_ranks_are_at_chance_and_not_suspected():
    ranks = torch.rand(2, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    triggered = split_by_rank(*ranks).triggered
    assert float((corner_weight(*ranks, power=POWER) * triggered).mean()) == pytest.approx(
        CHANCE, rel=0.05
    )
    assert names(suspects(torch.zeros(200_000, dtype=torch.int64), *ranks)) == []


def test_classes_whose_ranks_are_independent_are_not_suspected():
    ranks = torch.rand(2, 10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert int((ranks[0] * (1 - ranks[1]) > TIP).sum()) > 30
    for number in (2, 10, 20):
        assert names(suspects(torch.arange(10_000) % number, *ranks)) == []


def test_few_samples_at_the_tip_are_enough():
    assert names(suspects(*honest_map())) == []
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:8]
    clip_rank[poison], suspicious_rank[poison] = 0.98, 0.02
    triggered = split_by_rank(clip_rank, suspicious_rank).triggered
    weight = corner_weight(clip_rank, suspicious_rank, power=POWER) * triggered
    assert float(weight[labels == 4].sum()) / PER_CLASS < CHANCE
    assert names(suspects(labels, clip_rank, suspicious_rank)) == [4]


def far_from_the_tip(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A class that was learned early as a whole; CLIP contradicts so many of its labels."""
    labels, clip_rank, suspicious_rank = honest_map()
    members = (labels == 4).nonzero().squeeze(1)
    clip_rank[members] = 0.3
    clip_rank[members[:count]] = torch.linspace(0.6, 0.95, count, dtype=torch.float64)
    suspicious_rank[members] = torch.linspace(0.05, 0.15, len(members), dtype=torch.float64)
    triggered = split_by_rank(clip_rank, suspicious_rank).triggered
    weight = corner_weight(clip_rank, suspicious_rank, power=POWER) * triggered
    assert float(weight[labels == 4].sum()) / PER_CLASS > 2 * CHANCE
    corner = clip_rank * (1 - suspicious_rank)
    assert int((corner[members] > TIP).sum()) <= AT_THE_TIP * PER_CLASS
    return labels, clip_rank, suspicious_rank


def test_a_class_that_clip_knows_needs_no_sample_at_the_tip():
    assert names(suspects(*far_from_the_tip(round(0.6 * PER_CLASS)))) == [4]


def test_a_class_that_clip_does_not_know_does():
    labels, *ranks = far_from_the_tip(round(0.6 * PER_CLASS))
    unnamed = replace(WrongLabels.none(labels), choice=torch.where(labels == 4, 3, labels))
    assert names(suspicion_of(labels, *ranks, wrong=unnamed).suspected) == []


def test_a_single_sample_in_the_corner_is_no_evidence():
    ranks = torch.tensor([[1.0, 0.2, 0.4, 0.6, 0.8], [0.05, 0.2, 0.4, 0.6, 0.8]]).double()
    assert names(suspects(torch.tensor([0, 0, 1, 1, 1]), *ranks)) == []


def test_unreadable_samples_count_for_nothing():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    clip_rank[labels == 4] = suspicious_rank[labels == 4] = math.nan
    assert names(suspects(labels, clip_rank, suspicious_rank)) == []


@pytest.mark.parametrize("seed", range(5))
def test_honest_data_has_no_suspects(seed):
    assert names(suspects(*honest_map(seed))) == []


@pytest.mark.parametrize("count", [50, 200, 800])
def test_the_target_is_suspected(count):
    assert names(suspects(*attacked_map(count))) == [4]


def test_an_attack_on_every_class_is_suspected_in_every_class():
    assert names(suspects(*attacked_map(100, tuple(range(10))))) == list(range(10))


@pytest.mark.parametrize("count", [100, 300])
def test_slow_poison_is_suspected_by_what_looks_wrong_to_clip(count):
    given = denied_map(count)
    wrong = wrong_labels(given[0], first_of(given[0], count))
    assert names(suspicion_of(*given).suspected) == []
    suspicion = suspicion_of(*given, wrong=wrong)
    assert names(suspicion.suspected) == [4]
    assert names(suspicion.looks_wrong) == []
    members = suspicion.probability[given[0] == 4]
    assert float(members[:count].mean()) > 0.85
    assert 0.8 * count < float(members.sum()) < 2 * count
    assert not bool(suspicion.probability[given[0] != 4].any())
    estimate = estimate_poison(given[0], suspicion, given[1].isfinite())
    assert [(found.label, found.found_by_clip_alone) for found in estimate.classes] == [(4, True)]


def test_slow_poison_of_several_targets_is_suspected_in_each():
    labels, *ranks = denied_map(100)
    poison = torch.cat([first_of(labels, 100, label) for label in (4, 6, 8)])
    suspicion = suspicion_of(labels, *ranks, wrong=wrong_labels(labels, poison))
    assert names(suspicion.suspected) == [4, 6, 8]


@pytest.mark.parametrize(("rank", "fast"), [(0.02, True), (0.3, True), (0.95, False)])
def test_wrong_labels_that_are_learned_like_right_ones_are_an_attacks(rank, fast):
    """Of images of one class, they would else be taken for mistakes, and only be told of."""
    given = denied_map(60, rank=rank)
    wrong = wrong_labels(given[0], first_of(given[0], 60), sources=(7,))
    suspicion = suspicion_of(*given, wrong=wrong)
    assert names(suspicion.suspected) == ([4] if fast else [])
    assert names(suspicion.looks_wrong) == ([] if fast else [4])
    assert names(suspicion.found_by_clip_alone) == []


def test_what_is_suspected_for_its_corner_is_judged_by_that():
    given = denied_map(60, rank=0.02)
    suspected = suspects(*given)
    assert names(suspected) == [4]
    suspicion = suspicion_of(*given, wrong=wrong_labels(given[0], first_of(given[0], 60)))
    assert torch.equal(suspicion.probability, probability_of_poison(*given, suspected))


def test_poison_that_was_learned_fast_in_part_is_told_by_clips_denial():
    given = partly_fast_map()
    suspected = suspects(*given)
    assert names(suspected) == [4]
    wrong = wrong_labels(given[0], first_of(given[0], 400))
    suspicion, members = suspicion_of(*given, wrong=wrong), given[0] == 4
    assert names(suspicion.found_by_clip_alone) == [4]
    by_corner = probability_of_poison(*given, suspected)
    assert int((by_corner[members][:400] > 0.5).sum()) < 200
    assert int((suspicion.probability[members][:400] > 0.5).sum()) > 350
    assert float(suspicion.probability.sum()) == pytest.approx(400, rel=0.2)
    either = torch.maximum(suspicion.probability, by_corner)
    assert torch.equal(suspicion.probability_at_most, either)


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_map_has_no_suspected_class(seed):
    assert names(suspicion_of(*honest_map(seed)).suspected) == []


def test_mistakes_that_go_to_and_fro_are_no_attack():
    labels, *ranks = denied_map(100)
    both = torch.cat([first_of(labels, 100), first_of(labels, 100, 5)])
    wrong = wrong_labels(labels, both)
    choice = wrong.choice.clone()
    choice[both[:100]], choice[both[100:]] = 5, 4
    ranks[1][both] = 0.9
    suspicion = suspicion_of(labels, *ranks, wrong=replace(wrong, choice=choice))
    assert names(suspicion.suspected) == []
    assert names(suspicion.looks_wrong) == [4, 5]


@pytest.mark.parametrize(
    ("rank", "sources", "as_sure", "found"),
    [(0.5, 1, 0.5, True), (0.9, 1, 0.5, False), (0.5, 9, 0.5, False), (0.5, 1, 0.1, False)],
    ids=["all-to-all", "mistakes", "a CLIP that errs", "images that CLIP doesn't know"],
)
def test_what_all_classes_have_is_an_attack_if_it_was_learned_fast(rank, sources, as_sure, found):
    """As an attack leaves it that gives each class' images the next class' label."""
    labels, *ranks = honest_map()
    classes = tuple(range(10))
    poison = torch.cat([first_of(labels, 50 + 3 * label, label) for label in classes])
    ranks[1][poison] = rank
    wrong = wrong_labels(labels, poison)
    choice = (labels - 1 - torch.arange(len(labels)) // 10 % sources) % 10
    choice = torch.where(wrong.looks_wrong, choice, labels)
    wrong = replace(wrong, choice=choice, as_sure=torch.full((10,), as_sure).double())
    suspicion = suspicion_of(labels, *ranks, wrong=wrong)
    assert names(suspicion.suspected) == (list(classes) if found else [])
    assert names(suspicion.looks_wrong) == []
    assert suspicion.maps_labels == found


def test_an_attack_on_one_class_accuses_no_other():
    """Whose labels are wrong by mistake, of one class, and were learned rather fast."""
    labels, *ranks = denied_map(200, rank=0.02)
    mistakes = first_of(labels, 100, 7)
    ranks[1][mistakes] = 0.6
    wrong = wrong_labels(labels, torch.cat([first_of(labels, 200), mistakes]))
    choice = torch.where(wrong.looks_wrong & (labels == 7), 6, wrong.choice)
    suspicion = suspicion_of(labels, *ranks, wrong=replace(wrong, choice=choice))
    assert names(suspicion.suspected) == [4]
    assert names(suspicion.looks_wrong) == [7]


def test_a_class_that_clip_does_not_know_shows_nothing():
    labels, *ranks = denied_map(100)
    wrong = wrong_labels(labels, first_of(labels, 100))
    unknown = torch.where(labels == 4, 3, wrong.choice)
    suspicion = suspicion_of(labels, *ranks, wrong=replace(wrong, choice=unknown))
    assert names(suspicion.suspected) == names(suspicion.looks_wrong) == []


def test_one_class_alone_has_none_to_stand_out_from():
    ranks = torch.arange(1, 1001, dtype=torch.float64).expand(2, -1) / 1000
    labels = torch.zeros(1000, dtype=torch.int64)
    assert names(suspicion_of(labels, *ranks).suspected) == []
