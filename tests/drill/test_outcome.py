"""What an outcome says of a defence."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from cgd_wrap.drill import Outcome
from cgd_wrap.metrics import BackdoorFigures, DetectionFigures

HELD = {"clean": (0.8, 0.02, 0.75, 0.02), "before": (0.79, 0.99, 0.01, 0.02)}


def outcome_of(after, before=HELD["before"], clean=HELD["clean"]) -> Outcome:
    """An outcome with figures (CA, ASR, RA, natural rate)."""
    return Outcome(
        attack={"attack": "BadNets", "target": 0, "rate": 0.1},
        before=BackdoorFigures(*before), after=BackdoorFigures(*after),
        clean_trained=BackdoorFigures(*clean),
        detection=DetectionFigures(0.0, 1.0, 0.9, 0.99, 0.98),
        split={"clean": 8, "triggered": 1, "mixed": 1, "unreadable": 0},
        suspected=["cat"], estimated_rate=0.08, zero_shot_agreement=0.9, seconds={"scan": 1.234},
        poisoned=torch.zeros(10, dtype=torch.bool), guard=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((0.798, 0.004, 0.71, 0.02), []),
        ((0.9, 0.024, 0.9, 0.02), []),  # no more often than without a trigger
        ((0.8, 0.009, 0.75, 0.001), []),
        ((0.8, 0.05, 0.75, 0.02), ["still succeeds on 5.0%"]),
        ((0.79, 0.0, 0.69, 0.02), ["1.0 points below", "robust accuracy is 6.0"]),
    ],
)
def test_what_falls_short_is_named(after, words):
    found = outcome_of(after).shortfalls()
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.parametrize("success", [0.3, float("nan")])
def test_an_attack_that_did_not_take_says_nothing(success):
    (text,) = outcome_of(HELD["clean"], before=(0.8, success, 0.1, 0.02)).shortfalls()
    assert "did not take" in text


def test_figures_are_json_with_the_excess_over_the_natural_rate():
    figures = json.loads(json.dumps(outcome_of((0.8, 0.05, 0.7, 0.02)).as_dict()))
    assert figures["excess_attack_success_rate"] == pytest.approx(0.03)
    assert figures["ra_ceiling"] == 0.75
    assert figures["clean_trained_accuracy"] == 0.8
    assert figures["attack"] == "BadNets"
    assert figures["seconds"] == {"scan": 1.2}


def test_text_names_suspects_and_shortfalls():
    outcome = outcome_of((0.7, 0.0, 0.75, 0.02))
    assert "Suspected classes: cat; estimated poison: 8.0%" in outcome.as_text()
    assert "Falls short: clean accuracy is 10.0 points" in outcome.as_text()
    assert "none" in dataclasses.replace(outcome, suspected=[]).as_text()


def test_names_of_classes_cannot_act_on_the_terminal():
    """Row 44 of the faults: a name can't clear the screen, or forge a line."""
    outcome = dataclasses.replace(outcome_of(HELD["clean"]), suspected=["cat\n\x1b[2J", "猫"])
    assert r"Suspected classes: cat\x0a\x1b[2J, 猫; estimated poison: " in outcome.as_text()
    assert outcome.as_dict()["suspected"] == ["cat\n\x1b[2J", "猫"]
