"""Suspected classes, and what they let back into the clean split."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.functional import Split, corner_weight, split_by_rank
from cgd_wrap.split.estimate import PoisonEstimate, estimate_poison
from cgd_wrap.split.revision import revised
from cgd_wrap.split.suspicion import (
    Suspicion,
    evidence_in_corner,
    evidence_of_rejection,
    probability_of_poison,
)

PER_CLASS, CLASSES = 1000, 10
AT_THE_TIP, CHANCE = DEFAULT.far_corner_share, DEFAULT.chance_suspicion
DENIED, ENOUGH = DEFAULT.rejected_share, DEFAULT.evidence_needed
POWER, TIP = DEFAULT.corner_power, DEFAULT.far_corner


def honest_map(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels and two ranks, alike in every class: what is hard for one is hard for the other."""
    generator = torch.Generator().manual_seed(seed)
    size = PER_CLASS * CLASSES
    hardness = torch.rand(size, generator=generator, dtype=torch.float64)
    scores = hardness + 0.4 * torch.rand(2, size, generator=generator, dtype=torch.float64)
    ranks = (scores.argsort(1).argsort(1) + 1).double() / size
    return torch.arange(size) % CLASSES, ranks[0], ranks[1]


def attacked_map(count: int, targets: tuple[int, ...] = (4,)):
    """The same, with ``count`` samples of each target in the corner."""
    labels, clip_rank, suspicious_rank = honest_map()
    for target in targets:
        poison = (labels == target).nonzero().squeeze(1)[:count]
        clip_rank[poison] = 0.9 + 0.1 * torch.rand(count, dtype=torch.float64)
        suspicious_rank[poison] = 0.1 * torch.rand(count, dtype=torch.float64)
    return labels, clip_rank, suspicious_rank


def suspects(labels: torch.Tensor, *ranks: torch.Tensor) -> torch.Tensor:
    return evidence_in_corner(labels, *ranks, split_by_rank(*ranks).triggered) > ENOUGH


def revised_by(before: Split, labels: torch.Tensor, *given: torch.Tensor, **cuts) -> Split:
    """``given``: the ranks, and the suspected classes."""
    *ranks, suspected = given
    evidence = 2 * ENOUGH * suspected
    probability = probability_of_poison(labels, *given)
    suspicion = Suspicion(evidence, probability, torch.zeros_like(suspected), probability)
    return revised(before, labels, *ranks, suspicion, **cuts)


def estimate_of(labels: torch.Tensor, *given: torch.Tensor) -> PoisonEstimate:
    """``given``: the ranks, and the evidence."""
    *ranks, evidence = given
    probability = probability_of_poison(labels, *ranks, evidence > ENOUGH)
    none = torch.zeros_like(evidence, dtype=torch.bool)
    suspicion = Suspicion(evidence, probability, none, probability)
    return estimate_poison(labels, suspicion, sum(ranks).isfinite())


def names(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


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
    assert names(suspects(*far_from_the_tip(round(0.9 * PER_CLASS)))) == []


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


def test_unsuspected_classes_get_back_what_is_far_from_the_corner():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    clip_rank[7] = suspicious_rank[7] = math.nan
    before = split_by_rank(clip_rank, suspicious_rank)
    suspected = suspects(labels, clip_rank, suspicious_rank)
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected, corner_cut=0.3, poison_cut=None
    )
    back = after.clean & ~before.clean
    corner = clip_rank * (1 - suspicious_rank)
    assert int(back.sum()) > 100
    assert float(corner[back].max()) <= 0.3
    assert not bool((labels[back] == 4).any())
    stayed = (before.triggered | before.mixed) & (labels != 4) & ~back
    assert float(corner[stayed].min()) > 0.3
    assert not bool((before.clean & ~after.clean).any())
    assert not bool((after.clean | after.triggered | after.mixed)[7])
    assert sum(after.counts().values()) == len(labels)


def test_suspected_classes_lose_what_looks_like_their_poison():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    poison = torch.arange(len(labels)).where(labels == 4, torch.tensor(-1)).unique()[1:201]
    passed = poison[:40]  # poison that the thresholds let through
    clip_rank[passed], suspicious_rank[passed] = 0.78, 0.22
    before = split_by_rank(clip_rank, suspicious_rank)
    assert bool(before.clean[passed].all())
    suspected = suspects(labels, clip_rank, suspicious_rank)
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected, corner_cut=None, poison_cut=0.3
    )
    dropped = before.clean & ~after.clean
    assert bool(dropped[passed].all())
    assert bool(after.mixed[dropped].all())
    assert bool((labels[dropped] == 4).all())
    assert torch.equal(before.triggered, after.triggered)
    genuine = labels == 4
    genuine[poison] = False
    assert int((dropped & genuine).sum()) < 0.1 * int((before.clean & genuine).sum())


def test_neither_cut_leaves_the_thresholds_split():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    before = split_by_rank(clip_rank, suspicious_rank)
    suspected = suspects(labels, clip_rank, suspicious_rank)
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected, corner_cut=None, poison_cut=None
    )
    assert all(
        torch.equal(a, b) for a, b in zip(vars(before).values(), vars(after).values(), strict=True)
    )


def test_what_clip_contradicts_stays_flagged_while_nobody_is_suspected():
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:100]
    clip_rank[poison], suspicious_rank[poison] = 0.97, 0.8  # learned too slowly to be noticed
    before = split_by_rank(clip_rank, suspicious_rank)
    suspected = suspects(labels, clip_rank, suspicious_rank)
    assert names(suspected) == []
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected, corner_cut=0.3, poison_cut=0.3
    )
    assert bool(after.triggered[poison].all())
    assert float(clip_rank[after.clean & before.triggered].max()) <= 0.5
    assert int((after.clean & ~before.clean).sum()) > 100


def test_a_suspected_class_keeps_a_quarter_of_its_clean_samples():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    before = split_by_rank(clip_rank, suspicious_rank)
    suspected = torch.arange(CLASSES) == 4
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected, corner_cut=None, poison_cut=-1.0
    )
    members = labels == 4
    kept = int((after.clean & members).sum()) / int((before.clean & members).sum())
    assert kept == pytest.approx(0.25, abs=0.01)
    assert bool((before.clean & ~members <= after.clean).all())


def test_auto_finds_all_of_the_poison_however_much_it_is():
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:900]
    # Spread over more than the tenth that the thresholds flag, as ranks of much poison are.
    clip_rank[poison] = torch.linspace(0.8, 1.0, 900, dtype=torch.float64)
    suspicious_rank[poison] = torch.linspace(0.19, 0.01, 900, dtype=torch.float64)
    before = split_by_rank(clip_rank, suspicious_rank)
    cuts = {"corner_cut": 0.3, "poison_cut": 0.3}
    suspected = suspects(labels, clip_rank, suspicious_rank)
    assert names(suspected) == [4]
    fixed, auto = (
        revised_by(before, labels, clip_rank, suspicious_rank, suspected, **cuts, auto=auto)
        for auto in (False, True)
    )
    assert int(fixed.triggered[poison].sum()) < 600
    assert int(auto.triggered[poison].sum()) > 850
    assert not bool(auto.clean[poison].any())
    others = labels != 4
    for name, mask in vars(fixed).items():
        assert torch.equal(mask[others], getattr(auto, name)[others])
    assert sum(auto.counts().values()) == len(labels)


def test_auto_takes_back_what_is_plainly_no_poison():
    labels, clip_rank, suspicious_rank = attacked_map(200)
    before = split_by_rank(clip_rank, suspicious_rank)
    suspected = suspects(labels, clip_rank, suspicious_rank)
    after = revised_by(
        before, labels, clip_rank, suspicious_rank, suspected,
        corner_cut=None, poison_cut=None, auto=True,
    )  # fmt: skip
    back = after.clean & ~before.clean
    assert int(back.sum()) > 20
    assert bool((before.mixed & (labels == 4))[back].all())
    assert float((clip_rank * (1 - suspicious_rank))[back].max()) < 0.6


def denied_map(count: int, rank: float = 0.9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``count`` samples of class 4 that CLIP denies flatly, learned as slowly as ``rank`` says."""
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:count]
    clip_rank[poison] = torch.linspace(0.9901, 1.0, count, dtype=torch.float64)
    suspicious_rank[poison] = rank
    return labels, clip_rank, suspicious_rank


def suspicion_of(labels: torch.Tensor, *ranks: torch.Tensor) -> Suspicion:
    return Suspicion.of(labels, *ranks, split_by_rank(*ranks).triggered)


@pytest.mark.parametrize("count", [100, 300])
def test_slow_poison_is_suspected_by_how_flatly_clip_denies_it(count):
    given = denied_map(count)
    assert names(suspects(*given)) == []
    suspicion = suspicion_of(*given)
    assert names(suspicion.suspected) == [4]
    members = suspicion.probability[given[0] == 4]
    assert float(members[:count].mean()) > 0.85
    assert 0.8 * count < float(members.sum()) < 2 * count
    assert not bool(suspicion.probability[given[0] != 4].any())
    estimate = estimate_poison(given[0], suspicion, given[1].isfinite())
    assert [(found.label, found.found_by_clip_alone) for found in estimate.classes] == [(4, True)]


def test_what_is_suspected_for_its_corner_is_judged_by_that():
    given = denied_map(60, rank=0.02)
    suspected = suspects(*given)
    assert names(suspected) == [4] == names(evidence_of_rejection(*given[:2]) > ENOUGH)
    assert torch.equal(suspicion_of(*given).probability, probability_of_poison(*given, suspected))


def partly_fast_map(count: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``count`` samples of class 4 that CLIP denies; a fifth was learned fast, the others not."""
    labels, clip_rank, suspicious_rank = honest_map()
    poison = (labels == 4).nonzero().squeeze(1)[:count]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    clip_rank[poison] = torch.linspace(0.93, 1.0, count, dtype=torch.float64)[order]
    suspicious_rank[poison] = torch.linspace(0.3, 0.9, count, dtype=torch.float64)
    suspicious_rank[poison[: count // 5]] = 0.02
    return labels, clip_rank, suspicious_rank


def test_poison_that_was_learned_fast_in_part_is_told_by_clips_denial():
    given = partly_fast_map()
    suspected = suspects(*given)
    assert names(suspected) == [4]
    suspicion, members = suspicion_of(*given), given[0] == 4
    assert names(suspicion.found_by_clip_alone) == [4]
    by_corner = probability_of_poison(*given, suspected)
    assert int((by_corner[members][:400] > 0.5).sum()) < 200
    assert int((suspicion.probability[members][:400] > 0.5).sum()) > 350
    assert float(suspicion.probability.sum()) == pytest.approx(400, rel=0.2)
    either = torch.maximum(suspicion.probability, by_corner)
    assert torch.equal(suspicion.probability_at_most, either)


def test_what_may_be_poison_by_either_place_leaves_the_clean_split():
    labels, *ranks = partly_fast_map()
    before = split_by_rank(*ranks)
    suspicion = suspicion_of(labels, *ranks)
    passed = (before.clean & (labels == 4)).nonzero().squeeze(1)
    doubtful = passed[ranks[0][passed].topk(100).indices]  # not in the quarter that is kept
    at_most = suspicion.probability_at_most.clone()
    at_most[doubtful] = 0.5
    for changed, stay in ((suspicion, 100), (replace(suspicion, probability_at_most=at_most), 0)):
        after = revised(before, labels, *ranks, changed, corner_cut=None, poison_cut=0.3, auto=True)
        assert int(after.clean[doubtful].sum()) == stay
        assert int(after.mixed[doubtful].sum()) == 100 - stay


def test_a_slow_class_keeps_the_quarter_that_clip_denies_least():
    labels, *ranks = denied_map(300)
    before, suspicion = split_by_rank(*ranks), suspicion_of(labels, *ranks)
    assert names(suspicion.found_by_clip_alone) == [4]
    after = revised(before, labels, *ranks, suspicion, corner_cut=None, poison_cut=-1.0)
    passed = before.clean & (labels == 4)
    kept = after.clean & (labels == 4)
    assert int(kept.sum()) == math.ceil(int(passed.sum()) / 4)
    assert float(ranks[0][kept].max()) < float(ranks[0][passed & ~kept].min())


@pytest.mark.parametrize("seed", range(5))
def test_clip_denies_no_honest_class_more_than_it_may(seed):
    assert names(suspicion_of(*honest_map(seed)).suspected) == []


def test_a_class_that_clip_finds_hard_is_not_denied():
    labels, clip_rank, _ = denied_map(round(DENIED * PER_CLASS))
    assert names(evidence_of_rejection(labels, clip_rank) > ENOUGH) == []
    labels, clip_rank, _ = denied_map(60)
    next_one = (labels == 5).nonzero().squeeze(1)[:30]
    clip_rank[next_one] = 0.995
    assert names(evidence_of_rejection(labels, clip_rank) > ENOUGH) == []


def test_a_class_that_clip_does_not_know_is_not_denied():
    labels, clip_rank, _ = denied_map(100)
    members = (labels == 4).nonzero().squeeze(1)[100:]
    clip_rank[members] = torch.linspace(0.4, 0.98, len(members), dtype=torch.float64)
    assert names(evidence_of_rejection(labels, clip_rank) > ENOUGH) == []


def test_one_class_alone_has_none_to_stand_out_from():
    ranks = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert names(evidence_of_rejection(torch.zeros(1000, dtype=torch.int64), ranks) > ENOUGH) == []


@pytest.mark.parametrize("count", [200, 800])
def test_the_estimate_is_near_the_truth(count):
    labels, *ranks = attacked_map(count, (4, 7))
    evidence = evidence_in_corner(labels, *ranks, split_by_rank(*ranks).triggered)
    estimate = estimate_of(labels, *ranks, evidence)
    assert {found.label for found in estimate.classes} == {4, 7}
    assert estimate.rate == pytest.approx(2 * count / len(labels), rel=0.4)
    for found in estimate.classes:
        assert found.poisoned == pytest.approx(count / PER_CLASS, rel=0.4)
        assert 0.998 < found.confidence <= 1
    assert json.loads(json.dumps(estimate.as_dict()))["rate"] == estimate.rate


def test_the_estimate_of_honest_or_unreadable_data_is_nothing():
    labels, *ranks = honest_map()
    evidence = evidence_in_corner(labels, *ranks, split_by_rank(*ranks).triggered)
    assert estimate_of(labels, *ranks, evidence) == PoisonEstimate(0.0, ())
    unreadable = torch.full((3,), math.nan, dtype=torch.float64)
    nothing = estimate_of(torch.arange(3), unreadable, unreadable, -torch.ones(3).double())
    assert nothing == PoisonEstimate(0.0, ())
