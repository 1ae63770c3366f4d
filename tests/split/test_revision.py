from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from made_up_maps import (
    CLASSES,
    ENOUGH,
    attacked_map,
    denied_map,
    figures_of,
    first_of,
    honest_map,
    names,
    partly_fast_map,
    suspects,
    suspicion_of,
    wrong_labels,
)

from cgd_wrap.functional import Split, split_by_rank
from cgd_wrap.split.revision import revised
from cgd_wrap.split.suspicion import Suspicion
from cgd_wrap.split.two_kinds import probability_of_poison


def revised_by(before: Split, labels: torch.Tensor, *given: torch.Tensor, **cuts) -> Split:
    """``given``: the ranks, and the suspected classes."""
    *ranks, suspected = given
    evidence = 2 * ENOUGH * suspected
    probability = probability_of_poison(labels, *given)
    none = torch.zeros_like(suspected)
    figures = figures_of(labels, *ranks)
    suspicion = Suspicion(evidence, probability, none, probability, none, figures)
    return revised(before, labels, *ranks, suspicion, **cuts)


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


def test_under_an_attack_that_maps_labels_what_clip_contradicts_stays_triggered():
    labels, *ranks = attacked_map(200)
    before = split_by_rank(*ranks)
    suspicion = suspicion_of(labels, *ranks)
    assert not suspicion.maps_labels
    alone, mapped = (
        revised(before, labels, *ranks, replace(suspicion, maps_labels=one),
                corner_cut=0.3, poison_cut=None)
        for one in (False, True)
    )  # fmt: skip
    contradicted = before.triggered & (ranks[0] > 0.5) & (labels != 4)
    assert bool((alone.clean & contradicted).any())
    assert bool(mapped.triggered[contradicted].all())
    assert torch.equal(alone.clean & ~contradicted, mapped.clean)


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


def test_what_may_be_poison_by_either_place_leaves_the_clean_split():
    labels, *ranks = partly_fast_map()
    before = split_by_rank(*ranks)
    wrong = wrong_labels(labels, first_of(labels, 400))
    suspicion = suspicion_of(labels, *ranks, wrong=wrong)
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
    wrong = wrong_labels(labels, first_of(labels, 300))
    before, suspicion = split_by_rank(*ranks), suspicion_of(labels, *ranks, wrong=wrong)
    assert names(suspicion.found_by_clip_alone) == [4]
    after = revised(before, labels, *ranks, suspicion, corner_cut=None, poison_cut=-1.0)
    passed = before.clean & (labels == 4)
    kept = after.clean & (labels == 4)
    assert int(kept.sum()) == math.ceil(int(passed.sum()) / 4)
    assert float(ranks[0][kept].max()) < float(ranks[0][passed & ~kept].min())
