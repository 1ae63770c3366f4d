"""How many labels are wrong, by CLIP's scores of other classes' images, and whence they come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.split.class_figures import ClassFigures, share_slower, speed_in_class
from cgd_wrap.split.label_scores import LabelScores, compared
from cgd_wrap.split.suspicion import looks_planted
from cgd_wrap.split.wrong_labels import WrongLabels

CLASSES, SIZE = 5, 10_000


def images(seed: int = 0, sure: float = 4.0) -> tuple[Tensor, Tensor]:
    """True classes, and logits of a CLIP that is right of most, and errs at random."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(SIZE) % CLASSES
    logits = torch.randn(SIZE, CLASSES, generator=generator)
    logits[torch.arange(SIZE), true] += sure
    return true, logits


def scores_of(logits: Tensor, labels: Tensor) -> LabelScores:
    score = functional.label_log_odds_against(logits, labels)
    few = functional.log_odds_against_all(logits[compared(len(labels))])
    sureness = logits.log_softmax(dim=1).amax(dim=1).half()
    return LabelScores(score, logits.argmax(1), {}, few, sureness)


def found(logits: Tensor, labels: Tensor) -> tuple[WrongLabels, ClassFigures]:
    valid = torch.ones_like(labels, dtype=torch.bool)
    wrong = WrongLabels.of([scores_of(logits, labels)], labels, valid)
    half = torch.full((len(labels),), 0.5, dtype=torch.float64)
    return wrong, ClassFigures.of(labels, half, half, valid, wrong)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_share_of_wrong_labels_is_estimated(share: float) -> None:
    true, logits = images()
    labels = true.clone()
    labels[true != 2] = torch.where(
        torch.arange(int((true != 2).sum())) % 1000 < 250 * share / (1 - share),
        2,
        labels[true != 2],
    )
    truth = float((true[labels == 2] != 2).double().mean())
    assert truth == pytest.approx(share, rel=0.1)
    shares = found(logits, labels)[1].wrong_share
    assert float(shares[2]) == pytest.approx(truth, rel=0.15, abs=0.004)
    assert float(shares[torch.arange(CLASSES) != 2].max()) < 0.01


def test_the_flow_says_whence_they_come() -> None:
    true, logits = images(sure=8.0)
    labels = torch.where((true == 1) & (torch.arange(SIZE) % 100 < 50), 3, true)
    flow = found(logits, labels)[0].flow(labels)
    moved = int((labels != true).sum())
    assert float(flow.into[3]) == pytest.approx(moved, rel=0.2)
    assert float(flow.out[1]) == pytest.approx(moved, rel=0.25)
    assert float(flow.from_one[3]) > 0.95
    assert float(flow.out[3]) == 0


@pytest.mark.parametrize("known", [4.0, -5.0])
def test_what_leaves_a_class_that_clip_knows_badly_is_not_taken_for_less(known: float) -> None:
    """CLIP sees few of its images under other labels, or none: that says nothing."""
    true, logits = images(sure=6.0)
    logits[true == 2, 2] += known - 6
    generator = torch.Generator().manual_seed(1)
    other = torch.randint(CLASSES, (SIZE,), generator=generator)
    chosen = torch.rand(SIZE, generator=generator)
    labels = torch.where((true == 2) & (chosen < 0.2), other, true)
    labels = torch.where((true != 2) & (chosen < 0.2 / CLASSES), 2, labels)
    wrong, figures = found(logits, labels)
    flow = wrong.flow(labels)
    came, left = ((labels == 2) & (true != 2)).sum(), ((labels != 2) & (true == 2)).sum()
    if known > 0:
        assert float(flow.into[2]) == pytest.approx(int(came), rel=0.25)
        assert float(flow.out[2]) == pytest.approx(int(left), rel=0.5)
    assert not looks_planted(figures, flow)[2]


def test_images_that_clip_does_not_know_are_told_from_wrong_labels() -> None:
    """CLIP contradicts both as firmly; but which other class these are, it isn't sure of."""
    true, logits = images(sure=8.0)
    tenth = (true == 2) & (torch.arange(SIZE) % 50 == 2)
    vague = logits.clone()
    vague[tenth] = torch.randn(
        int(tenth.sum()), CLASSES, generator=torch.Generator().manual_seed(1)
    )
    vague[tenth, 2] -= 6
    wrong, figures = found(vague, true)
    assert float(figures.wrong_share[2]) > 0.05
    assert float(wrong.as_sure[2]) < 0.2
    flow = replace(wrong.flow(true), from_one=torch.zeros(CLASSES).double())
    assert not looks_planted(figures, flow)[2]
    assert looks_planted(figures, replace(flow, as_sure=torch.full((CLASSES,), 0.5).double()))[2]
    mislabelled = torch.where((true != 2) & (torch.arange(SIZE) % 50 == 3), 2, true)
    wrong, figures = found(logits, mislabelled)
    assert float(figures.wrong_share[2]) > 0.05
    assert float(wrong.as_sure[2]) == pytest.approx(0.5, abs=0.15)


def test_unreadable_samples_are_neither_wrong_nor_compared_with() -> None:
    true, logits = images()
    bad = torch.arange(SIZE) % 3 == 0
    spoilt = logits.clone()
    spoilt[bad] = 0
    scores, valid = scores_of(spoilt, true), ~bad
    wrong = WrongLabels.of([scores], true, valid)
    assert not wrong.looks_wrong[bad].any()
    assert torch.allclose(wrong.bound, found(logits, true)[0].bound, atol=0.15)


def test_of_several_clips_the_one_that_contradicts_most_counts() -> None:
    true, logits = images(sure=8.0)
    labels = torch.where(torch.arange(SIZE) < 500, 4, true)
    fooled = logits.clone()
    fooled[:500, 4] += 20  # as a backdoor that this CLIP has learned, too
    valid = torch.ones_like(labels, dtype=torch.bool)
    both = [scores_of(one, labels) for one in (fooled, logits)]
    alone = WrongLabels.of(both[:1], labels, valid).looks_wrong
    together = WrongLabels.of(both, labels, valid)
    planted = (torch.arange(SIZE) < 500) & (true != 4)
    assert not alone[planted].any()
    assert float(together.looks_wrong[planted].double().mean()) == pytest.approx(0.25, abs=0.06)
    assert (together.choice[planted] == true[planted]).double().mean() > 0.95


@pytest.mark.parametrize("sharper", [1.0, 1.15])
def test_how_sure_a_clip_is_is_compared_with_itself(sharper: float) -> None:
    """The other one vouches for the poison, and is surer of everything."""
    true, logits = images(sure=6.0)
    _, other = images(seed=1, sure=6.0)
    labels = torch.where(torch.arange(SIZE) < 1000, 4, true)
    other[:1000, 4] += 20
    valid = torch.ones_like(labels, dtype=torch.bool)
    both = [scores_of(one, labels) for one in (logits, sharper * other)]
    assert float(WrongLabels.of(both, labels, valid).as_sure[4]) == pytest.approx(0.5, abs=0.12)


def test_no_wrong_labels_add_nothing() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    none = WrongLabels.none(labels)
    assert not none.looks_wrong.any()
    assert none.flow(labels).into.tolist() == [0, 0, 0]


def test_the_speed_is_the_area_under_the_roc_curve_within_the_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    ranks = torch.rand(400, generator=generator, dtype=torch.float64)
    wrong = torch.rand(400, generator=generator) < 0.2
    speed = speed_in_class(labels, ranks, wrong)
    for label in (0, 1):
        own, members = ranks[(labels == label) & ~wrong], (labels == label) & wrong
        area = functional.auroc(
            -ranks[labels == label], wrong[labels == label]
        )  # a low rank is fast
        assert float(speed[members].mean()) == pytest.approx(area, abs=1e-12)
        assert float(share_slower(ranks[members][:1], own.sort().values)) == pytest.approx(
            float((own > ranks[members][0]).double().mean())
        )
    assert not speed[~wrong].any()


def test_without_right_looking_samples_nothing_is_said_of_the_speed() -> None:
    labels = torch.tensor([0, 0, 1])
    wrong = torch.tensor([True, True, False])
    assert speed_in_class(labels, torch.tensor([0.1, 0.9, 0.5]).double(), wrong).tolist() == [
        0.5, 0.5, 0.0,
    ]  # fmt: skip
    assert float(share_slower(torch.tensor([0.5]).double(), torch.tensor([0.5]).double())) == 0.5


def test_figures_with_more_samples_are_those_of_all_together() -> None:
    true, logits = images()
    labels = torch.where(torch.arange(SIZE) < 300, 1, true)
    wrong, figures = found(logits, labels)
    added = torch.zeros(CLASSES, 6, dtype=torch.float64)
    added[1, 4] = 7
    more = figures.with_more(torch.tensor([0.0, 28, 0, 0, 0]).double(), added)
    assert more.size.tolist() == [size + 28 * (k == 1) for k, size in enumerate(figures.size)]
    assert float(more.wrong[1] - figures.wrong[1]) == 7
    assert replace(more, size=figures.size, wrong=figures.wrong).named.equal(figures.named)
    assert wrong.beyond == pytest.approx(0.25)


def test_large_classes_are_compared_with_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 40_000
    labels = torch.arange(size) % 2
    ranks = torch.rand(size, generator=generator, dtype=torch.float64)
    wrong = torch.rand(size, generator=generator) < 0.01
    speed = speed_in_class(labels, ranks, wrong)
    exact = 1 - ranks[wrong]  # of uniform ranks
    assert float((speed[wrong] - exact).abs().max()) < 0.05
    assert torch.equal(speed, speed_in_class(labels, ranks, wrong))
