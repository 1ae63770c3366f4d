"""What a scan lacks to mean something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.split.doubts import (
    HINTS,
    IN_SHORT,
    MEANINGLESS,
    VOIDING,
    Doubt,
    preconditions,
    without_clean_samples,
)

NAMES = ["cat", "dog", "ship"]
ENOUGH = int(DEFAULT.fewest_scanned)
LABELS = torch.arange(ENOUGH) % 3
ALL = torch.ones(ENOUGH, dtype=torch.bool)


def missing(
    labels: Tensor = LABELS,
    readable: Tensor = ALL,
    clean: Tensor = ALL,
    names: list[str] = NAMES,
    knowledge: float | None = 0.5,
) -> list[Doubt]:
    return list(preconditions(labels, readable, clean, names, knowledge))


@pytest.mark.parametrize("knowledge", [None, DEFAULT.least_learned, 1.0])
def test_nothing_is_missing_from_an_ordinary_scan(knowledge: float | None) -> None:
    assert missing(knowledge=knowledge) == []


def test_a_suspicious_model_near_chance() -> None:
    for knowledge in (-0.1, 0.0, 0.99 * DEFAULT.least_learned):
        [doubt] = missing(knowledge=knowledge)
        assert doubt.code == "suspicious_model_has_not_learned"
        assert "suspicious_epochs" in doubt.text
        assert "-" not in doubt.why
        assert all(doubt.voids(label) for label in range(3))


def test_few_samples_in_all_or_in_the_median_class() -> None:
    [doubt] = missing(LABELS[:-1], ALL[:-1], ALL[:-1])
    assert doubt.code == "too_few_samples"
    assert not doubt.voids(0)
    lone = torch.cat([torch.zeros(ENOUGH).long(), torch.arange(3)])
    everything = torch.ones(len(lone), dtype=torch.bool)
    [doubt] = missing(lone, everything, everything)
    assert "1 of the median class" in doubt.why
    long_tail = lone.clone()
    long_tail[: int(DEFAULT.fewest_named)] = 1
    assert missing(long_tail, everything, everything) == []


def test_unreadable_samples() -> None:
    labels = torch.arange(2 * ENOUGH) % 3
    clean = torch.ones(2 * ENOUGH, dtype=torch.bool)
    readable = torch.arange(2 * ENOUGH) >= DEFAULT.most_unreadable * 2 * ENOUGH
    assert missing(labels, readable, clean) == []
    readable[-1] = False
    [doubt] = missing(labels, readable, clean)
    assert doubt.code == "unreadable"


def test_a_class_without_clean_samples() -> None:
    clean = LABELS != 1
    [doubt] = missing(clean=clean)
    assert (doubt.code, doubt.classes) == ("no_clean_samples", (1,))
    assert "'dog'" in doubt.why
    assert without_clean_samples(LABELS, clean, 4) == [1]  # and not 3, which has no samples at all


@pytest.mark.parametrize(
    "name",
    ["0", " 12 ", "class_3", "Class 3", "class3", "label 7", "c5", "#4", "id-1", "n01440764"],
)
def test_names_that_mean_nothing(name: str) -> None:
    [doubt] = missing(names=["cat", name, "dog"])
    assert (doubt.code, doubt.classes) == ("names_mean_nothing", (1,))
    assert doubt.voids(1)
    assert not doubt.voids(0)
    assert repr(name) in doubt.why


@pytest.mark.parametrize(
    "name",
    ["cat", "digit 7", "the number 7", "0 - zero", "707-320", "C-130", "F-16", "speed limit 20",
     "001.Black footed albatross", "class of a school", "A", "車"],
)  # fmt: skip
def test_names_that_mean_something(name: str) -> None:
    assert MEANINGLESS.fullmatch(name) is None


def test_many_classes_are_counted() -> None:
    names = [f"class {k}" for k in range(20)]
    [doubt] = missing(torch.arange(ENOUGH) % 20, names=names)
    assert "'class 7' and 12 more" in doubt.why


def test_a_doubt_is_a_warning_and_escaped() -> None:
    doubt = Doubt("clips_disagree", "It is \x1b[2J so.", "Look.", (2,))
    assert doubt.text == r"It is \x1b[2J so. Look."
    assert not doubt.voids(2)
    assert set(IN_SHORT) >= HINTS | VOIDING
    with pytest.raises(ValueError, match="unknown code 'other'"):
        Doubt("other", "", "")  # type: ignore[arg-type]
