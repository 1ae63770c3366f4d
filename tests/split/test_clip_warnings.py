"""What warns that CLIP can't be trusted, and what must not: attacks and honest weakness."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.clip_warnings import (
    clip_warnings,
    discord,
    names_given_too_often,
    shared_backdoor,
    unknown_classes,
)
from cgd_wrap.split.label_scores import LabelScores

CLASSES, EACH = 10, 200
NAMES = [f"c{label}" for label in range(CLASSES)]
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)


def honest(accuracy: Tensor | float, truth: Tensor = LABELS, seed: int = 0) -> Tensor:
    """First choices of a CLIP with this accuracy (of each class), errors at random."""
    generator = torch.Generator().manual_seed(seed)
    accuracy = torch.as_tensor(accuracy).expand(CLASSES)[truth]
    right = torch.rand(len(truth), generator=generator) < accuracy
    wrong = (truth + torch.randint(1, CLASSES, truth.shape, generator=generator)) % CLASSES
    return torch.where(right, truth, wrong)


def warnings_of(
    choices: list[Tensor], labels: Tensor = LABELS, poison: Tensor | None = None
) -> list[str]:
    verdicts = [LabelScores(torch.zeros(len(labels)).double(), choice, {}) for choice in choices]
    names = ["CLIP"] if len(choices) == 1 else [f"CLIP {k + 1}" for k in range(len(choices))]
    valid = torch.ones(len(labels), dtype=torch.bool)
    figures = ClipAgreement.of(names, verdicts, labels, valid)
    if poison is None:
        poison = torch.zeros(len(labels), dtype=torch.float64)
    found = clip_warnings(figures, verdicts, labels, valid, poison, NAMES)
    hints = " ".join(doubt.text for doubt in found if doubt.is_hint)
    assert not any(word in hints for word in ("trusted", "backdoored", "doesn't", "not know"))
    return [doubt.text for doubt in found]


def poisoned_labels(truth: Tensor, rate: float, target: int = 0) -> Tensor:
    """Labels under a dirty-label attack on a share of all samples."""
    others = (truth != target).nonzero().squeeze(1)
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(1))
    labels = truth.clone()
    labels[others[order[: round(rate * len(truth))]]] = target
    return labels


# --- one CLIP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("accuracy", [0.5, 0.6, 0.8, 0.95])
def test_attacked_classes_and_weak_clips_are_no_reason_to_warn(accuracy, rate):
    worst = torch.full((CLASSES,), accuracy)
    worst[0] = worst[4] = max(0.3, accuracy - 0.3)  # the target, and another
    assert warnings_of([honest(worst)], poisoned_labels(LABELS, rate)) == []


def test_a_class_that_is_mostly_poison_is_no_reason_to_warn():
    """As with 100 classes and 10% of the data: ten times as much poison as true samples."""
    truth = torch.cat([LABELS, LABELS[LABELS != 3]])
    labels = torch.cat([LABELS, torch.full((EACH * (CLASSES - 1),), 3)])
    assert (labels[truth == 3] == 3).sum() / (labels == 3).sum() == 0.1
    assert unknown_classes("CLIP", honest(0.45, truth), labels, NAMES) == []


def test_classes_that_never_get_their_name_are_named_with_what_they_are_taken_for():
    choice = honest(0.9)
    choice[LABELS == 2] = 5
    choice[LABELS == 7] = 8
    choice[(LABELS == 7).nonzero()[0]] = 7
    [text] = warnings_of([choice])
    assert "CLIP doesn't give" in text
    assert "'c2' (0.0% of its 200 samples; 100% are taken for 'c5')" in text
    assert "'c7' (0.5% of its 200 samples; 100% are taken for 'c8')" in text
    assert "'c3'" not in text
    assert "prompts='openai'" in text


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_swapped_names_of_classes_that_look_alike_are_named(rate):
    """CLIP takes a fourth of each for the other, which then counts as its own."""
    choice, flip = honest(0.95), torch.arange(len(LABELS)) % 4 == 0
    for label, other in ((0, 8), (8, 0)):
        members = LABELS.eq(label)
        choice[members] = torch.where(flip[members], label, other)
    [text] = warnings_of([choice], poisoned_labels(LABELS, rate))
    assert "'c0' (" in text
    assert "are taken for 'c8'), 'c8' (" in text
    assert "are taken for 'c0');" in text


def test_a_class_that_is_mostly_taken_for_a_known_one_is_merely_weak():
    choice, half = honest(0.9), torch.arange(len(LABELS)) % 4 < 3
    choice[(LABELS == 3) & half] = 5
    assert warnings_of([choice]) == []


def test_few_samples_say_nothing():
    labels = torch.cat([LABELS, torch.full((10,), 9)])[torch.cat([LABELS != 9, torch.ones(10) > 0])]
    choice = honest(0.9, labels)
    choice[labels == 9] = 1
    assert unknown_classes("CLIP", choice, labels, NAMES) == []


def test_many_unknown_classes_are_counted():
    names = [f"c{label}" for label in range(60)]
    labels = torch.arange(60).repeat_interleave(40)
    choice = torch.where(labels < 20, labels + 30, labels)
    [text] = [doubt.text for doubt in unknown_classes("CLIP", choice, labels, names)]
    assert "'c7'" in text
    assert "and 12 more" in text
    assert "'c8'" not in text


def test_a_name_that_is_given_to_everything_is_named():
    choice = honest(0.9)
    choice[torch.arange(len(choice)) % 3 == 0] = 6
    [text] = warnings_of([choice])
    assert "CLIP takes 40%" in text
    assert "samples for 'c6', 10% are labelled so" in text


def test_a_name_whose_samples_were_relabelled_is_not_too_frequent():
    """A clean-image attack may take a class' own samples away from it."""
    labels = LABELS.clone()
    labels[(LABELS == 4).nonzero().squeeze(1)[:190]] = 0
    assert names_given_too_often("CLIP", honest(0.9), labels, NAMES) == []


def test_near_chance_is_a_warning_of_its_own():
    [text] = warnings_of([honest(0.2)])
    assert "given label for only 2" in text
    assert "(chance: 10.0%)" in text
    assert "not to be trusted" in text


# --- two CLIPs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.3])
@pytest.mark.parametrize(("one", "other"), [(0.5, 0.5), (0.6, 0.8), (0.95, 0.6), (0.9, 0.9)])
def test_honest_clips_that_err_independently_are_no_reason_to_warn(one, other, rate):
    labels = poisoned_labels(LABELS, rate)
    poison = (labels != LABELS).double()
    assert warnings_of([honest(one), honest(other, seed=1)], labels, poison) == []


def test_clips_that_are_right_on_different_samples_are_named():
    half = torch.arange(len(LABELS)) % 2 == 0
    wrong = (LABELS + 1) % CLASSES
    found = warnings_of([torch.where(half, LABELS, wrong), torch.where(half, wrong, LABELS)])
    assert len(found) == 1
    assert "CLIP 1 and CLIP 2 agree with 50% and 50% of the labels" in found[0]
    assert "with each other on only 0% of the samples" in found[0]


def test_a_class_that_only_one_clip_knows_is_named():
    weak = torch.full((CLASSES,), 0.9)
    weak[6] = 0.2
    choices = [honest(0.9), honest(weak, seed=1)]
    [text] = warnings_of(choices)
    assert "CLIP 1 agrees with" in text
    assert "of the labels 'c6', CLIP 2 with" in text
    assert "CLIP 2 agrees with" in warnings_of(choices[::-1])[0]


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_a_clip_that_vouches_for_what_looks_poisoned_is_named(rate):
    labels = poisoned_labels(LABELS, rate)
    poison = labels != LABELS
    backdoored = torch.where(poison, labels, honest(0.9))
    found = warnings_of([honest(0.9, seed=1), backdoored], labels, poison.double())
    [text] = [text for text in found if "backdoored with the same trigger" in text]
    assert text.startswith(f"CLIP 2 takes 100% of the {int(poison.sum())} samples labelled 'c0'")
    assert "CLIP 2 may itself be backdoored" in text
    verdicts = [LabelScores(torch.zeros(len(labels)), c, {}) for c in (labels, labels)]
    assert (
        shared_backdoor(["A", "B"], verdicts, labels, poison.double(), NAMES) == []
    )  # clean-label
    assert shared_backdoor(["A"], verdicts[:1], labels, poison.double(), NAMES) == []


def test_no_warning_where_no_class_is_apart():
    verdicts = [LabelScores(torch.zeros(len(LABELS)), honest(0.8, seed=s), {}) for s in (0, 1)]
    figures = ClipAgreement(("A", "B"), (0.8, 0.8))
    assert discord(figures, verdicts, LABELS, NAMES) == []
