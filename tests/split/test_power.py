"""The smallest attack that a scan notices: what it promises is held by attacks that are planted."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.scan.control import FAMILIES, Control, ControlPlan
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.stored_logits import StoredLogits, stored_logits
from cgd_wrap.split.control_scores import ControlScores, Scored
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.label_scores import LabelScores, compared
from cgd_wrap.split.power import Power
from cgd_wrap.split.suspicion import Suspicion
from cgd_wrap.split.wrong_labels import WrongLabels

CLASSES, SIZE, IMAGES = 6, 6000, 30


def scan_of(clip: Tensor, learned: Tensor, labels: Tensor) -> tuple[Suspicion, WrongLabels, Scored]:
    """What a scan finds by CLIP's logits, and by a score of how slowly each label was learned."""
    valid = torch.ones_like(labels, dtype=torch.bool)
    scores = LabelScores(
        functional.label_log_odds_against(clip, labels), clip.argmax(1), {},
        functional.log_odds_against_all(clip[compared(len(labels))]),
        clip.log_softmax(dim=1).amax(dim=1).half(),
    )  # fmt: skip
    placed = EntropyMap.from_scores(scores.score, learned)
    wrong = WrongLabels.of([scores], labels, valid)
    ranks = placed.clip_rank, placed.suspicious_rank
    suspicion = Suspicion.of(labels, *ranks, placed.split(sigma_slow=0.3).triggered, wrong)
    return suspicion, wrong, Scored(labels, scores.score, learned, valid, wrong.looks_wrong)


def noticed(suspicion: Suspicion, label: int) -> bool:
    return bool(suspicion.suspected[label] or suspicion.looks_wrong[label])


def images(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """True classes, CLIP's logits, and scores of how slowly right labels are learned."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(CLASSES, (size,), generator=generator)
    clip = torch.randn(size, CLASSES, generator=generator)
    clip[torch.arange(size), true] += 4
    hard = functional.label_log_odds_against(clip, true)
    return true, clip, hard + 3 * torch.randn(size, generator=generator).double()


def control_of(fast: bool, seed: int = 1) -> ControlScores:
    """Images of random classes under wrong labels: learned fast, or as slowly as the slowest."""
    size = IMAGES * len(FAMILIES)
    true, clip, _ = images(size, seed)
    generator = torch.Generator().manual_seed(seed)
    learned = (-12.0 if fast else 8.0) + torch.randn(size, generator=generator)
    family = torch.arange(size) % len(FAMILIES)
    label = (true + 1) % CLASSES
    return ControlScores(
        family, true, label, functional.log_odds_against_all(clip), learned.double()
    )


def power_of(scored: Scored, wrong: WrongLabels, suspicion: Suspicion, *, fast: bool) -> Power:
    return Power.of(control_of(fast), scored, wrong, suspicion.figures, 0.1, 0)


def share_noticed(number: int, label: int, *, fast: bool, trials: int = 25) -> float:
    """Plant attacks like the control in honest data, and scan."""
    found = []
    for trial in range(trials):
        true, clip, learned = images(SIZE, 100 + trial)
        labels = true.clone()
        poison = (true != label).nonzero().squeeze(1)[:number]
        labels[poison] = label
        generator = torch.Generator().manual_seed(trial)
        learned[poison] = -12.0 if fast else 8.0
        learned[poison] += torch.randn(number, generator=generator).double()
        found.append(noticed(scan_of(clip, learned, labels)[0], label))
    return sum(found) / trials


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_attacks_of_that_size_are_noticed_and_much_smaller_ones_are_not(fast: bool) -> None:
    true, clip, learned = images(SIZE, 0)
    suspicion, wrong, scored = scan_of(clip, learned, true)
    smallest = power_of(scored, wrong, suspicion, fast=fast).smallest_noticed
    assert len(smallest) == CLASSES
    number = smallest[2]
    assert number is not None
    assert 4 <= number < SIZE / CLASSES / 4
    assert share_noticed(number, 2, fast=fast) > 0.8  # of 25, where 95% are promised
    assert share_noticed(number // 4, 2, fast=fast) < 0.5


def test_under_a_class_that_clip_does_not_know_nothing_is_noticed() -> None:
    true, clip, learned = images(SIZE, 0)
    clip[:, 3] = -20
    suspicion, wrong, scored = scan_of(clip, learned, true)
    smallest = power_of(scored, wrong, suspicion, fast=False).smallest_noticed
    assert smallest[3] is None
    assert None not in smallest[:3]


def test_a_hidden_attack_makes_the_scan_seem_no_keener() -> None:
    """What is hidden under a class must not count for what the scan would see."""
    true, clip, learned = images(SIZE, 0)
    honest = power_of(*reversed_scan(clip, learned, true), fast=False).smallest_noticed[2]
    labels = true.clone()
    labels[(true != 2).nonzero().squeeze(1)[:20]] = 2
    hidden = power_of(*reversed_scan(clip, learned, labels), fast=False).smallest_noticed[2]
    assert honest is not None
    assert hidden is not None
    assert hidden > 0.8 * honest


def reversed_scan(clip: Tensor, learned: Tensor, labels: Tensor):
    suspicion, wrong, scored = scan_of(clip, learned, labels)
    return scored, wrong, suspicion


def test_it_is_the_same_each_time_and_survives_json() -> None:
    true, clip, learned = images(SIZE, 0)
    parts = reversed_scan(clip, learned, true)
    power = power_of(*parts, fast=True)
    assert power == power_of(*parts, fast=True)
    assert Power.from_dict(json.loads(json.dumps(power.as_dict()))) == power
    assert [(place.name, place.images) for place in power.control] == [
        (name, IMAGES) for name in FAMILIES
    ]
    assert all(place.clip_rank > 0.9 and place.suspicious_rank < 0.1 for place in power.control)


def test_a_family_of_which_no_image_can_be_read_tells_nothing() -> None:
    true, clip, learned = images(SIZE, 0)
    scored, wrong, suspicion = reversed_scan(clip, learned, true)
    control = control_of(fast=True)
    kept = control.family != 1
    rest = replace(control, **{name: one[kept] for name, one in vars(control).items()})
    power = Power.of(rest, scored, wrong, suspicion.figures, 0.1, 0)
    assert power.smallest_noticed == (None,) * CLASSES
    assert [place.name for place in power.control] == [n for n in FAMILIES if n != FAMILIES[1]]


def test_hundreds_of_classes_take_a_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    classes, size = 300, 6000
    true = torch.arange(size) % classes
    clip = torch.randn(size, classes, generator=generator)
    clip[torch.arange(size), true] += 6
    learned = torch.randn(size, generator=generator).double()
    suspicion, wrong, scored = scan_of(clip, learned, true)
    shown = functional.log_odds_against_all(clip[:120])
    control = ControlScores(
        torch.arange(120) % 4, true[:120], (true[:120] + 1) % classes, shown, learned[:120]
    )
    started = time.process_time()
    power = Power.of(control, scored, wrong, suspicion.figures, 0.1, 0)
    assert len(power.smallest_noticed) == classes
    assert time.process_time() - started < 60  # half a second on a free core: not hours


def test_scores_of_a_control_leave_out_what_could_not_be_read(tmp_path: Path) -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    stores = [UnitStore.open(tmp_path / name, 8, {"of": name}) for name in ("clip", "suspicious")]
    stores[0].write(0, {"logits": logits}, {5: ("gone", "it is gone", None)})
    stores[1].write(0, {"logits": -logits}, {})
    clip, suspicious = (StoredLogits(store, stored_logits) for store in stores)
    plan = ControlPlan(torch.arange(8), torch.arange(8) % 4, torch.tensor([1] * 8))
    scores = ControlScores.of(
        Control(plan, torch.zeros(8, dtype=torch.int64), clip, suspicious), reference_scores=False
    )
    assert scores.family.tolist() == [0, 1, 2, 3, 0, 2, 3]
    kept = logits[[0, 1, 2, 3, 4, 6, 7]]
    for label in range(3):
        one = functional.label_log_odds_against(kept, torch.full((7,), label))
        assert torch.allclose(scores.clip[:, label], one)
    ones = torch.ones(7, dtype=torch.int64)
    assert torch.allclose(scores.suspicious, functional.label_log_odds_against(-kept, ones))
