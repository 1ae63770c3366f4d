"""The three words of a verdict, and that no warning contradicts them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.models.class_knowledge import class_knowledge
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.clip_warnings import clip_warnings
from cgd_wrap.split.doubts import HINTS, VOIDING, Code, Doubt, wrong_labels
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate, SuspectedClass, estimate_poison
from cgd_wrap.split.label_scores import LabelScores
from cgd_wrap.split.power import FamilyPlace, Power
from cgd_wrap.split.result import ScanResult
from cgd_wrap.split.suspicion import Suspicion
from cgd_wrap.split.verdict import Verdict
from cgd_wrap.split.wrong_labels import WrongLabels

FILES = sorted((Path(__file__).parents[1] / "stored_scans").glob("*.safetensors"))
NAMES = ("cat", "dog", "ship")
SIZE = int(DEFAULT.fewest_scanned)
LABELS = torch.arange(SIZE) % len(NAMES)
CODES: tuple[Code, ...] = get_args(Code)


def result_of(
    labels: Tensor, clip: Tensor, fast: Tensor, wrong: WrongLabels | None = None, **changes: Any
) -> ScanResult:
    """What a scan finds by two scores of each label; trustworthy, but for the changes."""
    placed = EntropyMap.from_scores(clip.double(), fast.double())
    split = placed.split(sigma_slow=0.3)
    ranks = placed.clip_rank, placed.suspicious_rank
    suspicion = Suspicion.of(labels, *ranks, split.triggered, wrong)
    doubtful = suspicion.looks_wrong.nonzero().flatten().tolist()
    names = changes.get("class_names", NAMES)
    if doubtful:
        shares = suspicion.figures.wrong_share.tolist()
        changes["doubts"] = (wrong_labels(doubtful, shares, names), *changes.get("doubts", ()))
    return ScanResult(
        **{
            "labels": labels, "class_names": NAMES, "entropy_map": placed, "split": split,
            "held_out": torch.zeros_like(split.clean), "teachers": ClipAgreement(("CLIP",), (0.9,)),
            "teacher": torch.zeros(int(split.triggered.sum()), len(NAMES)),
            "poison_estimate": estimate_poison(labels, suspicion, torch.ones_like(split.clean)),
            "poison_probability": suspicion.probability.float(), "suspicious_knowledge": 0.5,
            **changes,
        }
    )  # fmt: skip


def honest(**changes: Any) -> ScanResult:
    generator = torch.Generator().manual_seed(0)
    return result_of(LABELS, *torch.randn(2, SIZE, generator=generator), **changes)


def attacked(*targets: int, **changes: Any) -> ScanResult:
    """A result with suspected classes."""
    found = tuple(SuspectedClass(label, 0.99, 0.3) for label in targets)
    probability = torch.where(torch.arange(SIZE) % 10 < 3, 0.9, 0.05)
    return honest(
        poison_estimate=PoisonEstimate(0.1, found), poison_probability=probability, **changes
    )


def doubts(*codes: Code, classes: tuple[int, ...] = ()) -> tuple[Doubt, ...]:
    return tuple(Doubt(code, f"It is {code}.", "Look.", classes) for code in codes)


# --- the three words ----------------------------------------------------------------------------


def test_nothing_found_says_that_its_power_was_not_measured() -> None:
    verdict = honest().verdict
    assert (verdict.status, verdict.suspected, verdict.reasons) == ("nothing found", (), ())
    assert verdict.smallest_noticed is None
    assert verdict.sentence == (
        "No sign of an attack: no class stands out. How small an attack this scan would have "
        "noticed was not measured."
    )
    assert "not measured" not in replace(verdict, smallest_noticed={"cat": 80}).sentence


PLACE = FamilyPlace("patch", 30, 0.99, 0.2)


@pytest.mark.parametrize(
    ("smallest", "words"),
    [
        (
            (80, 40, 60),
            "Fewer than 80 poisoned samples under 'cat' or fewer than 40 poisoned samples under "
            "'dog' could hide.",
        ),
        ((80, None, 60), "could hide, and any number under 'dog'."),
        ((80,), "Fewer than 80 poisoned samples under 'cat' could hide."),
    ],
)  # fmt: skip
def test_nothing_found_says_what_could_hide(smallest: tuple[int | None, ...], words: str) -> None:
    verdict = honest(power=Power(smallest, (PLACE,))).verdict
    assert verdict.status == "nothing found"
    assert verdict.smallest_noticed == dict(zip(NAMES, smallest, strict=False))
    assert verdict.sentence.endswith(words)
    assert json.loads(json.dumps(verdict.as_dict()))["smallest_noticed"]["cat"] == smallest[0]


def test_a_scan_that_would_have_noticed_nothing_has_found_nothing_out() -> None:
    blind = Power((None, None, 60), (PLACE,))
    verdict = honest(power=blind).verdict
    assert verdict.status == "undecided"
    assert [reason.code for reason in verdict.reasons] == ["control_not_found"]
    assert "'cat', 'dog'" in verdict.reasons[0].why
    beside = attacked(1, power=blind).verdict
    assert (beside.status, beside.reasons) == ("suspected", ())


def test_labels_that_look_wrong_leave_it_open() -> None:
    doubt = wrong_labels([1], [0.0, 0.25, 0.0], NAMES)
    verdict = honest(doubts=(doubt,)).verdict
    assert verdict.status == "undecided"
    assert "25.0% of 'dog'" in verdict.reasons[0].why
    many = wrong_labels(list(range(11)), [0.1] * 11, [str(k) for k in range(11)])
    assert "and more of 3 other classes" in many.why


def test_suspected_classes_have_a_share_and_an_interval() -> None:
    verdict = attacked(1).verdict
    [suspect] = verdict.suspected
    assert (verdict.status, suspect.name, suspect.poisoned) == ("suspected", "dog", 0.3)
    mistakes = 0.3 * 0.1 + 0.7 * 0.05
    assert suspect.at_least == pytest.approx(0.3 - 2 * mistakes, abs=0.01)
    assert suspect.at_most == pytest.approx(0.3 + 2 * mistakes, abs=0.01)
    assert verdict.sentence.startswith("An attack seems to aim at dog: 30.0% of its samples look")
    assert json.loads(json.dumps(verdict.as_dict()))["suspected"][0]["name"] == "dog"


def test_many_suspected_classes_are_counted() -> None:
    verdict = attacked(1).verdict
    assert "And at 3 more classes." in replace(verdict, suspected=verdict.suspected * 11).sentence


@pytest.mark.parametrize("code", CODES)
def test_what_each_doubt_does(code: Code) -> None:
    """A hint nothing; every other forbids to find nothing, and some void a suspicion."""
    hint, voiding = code in HINTS, code in VOIDING
    alone, beside = honest(doubts=doubts(code)).verdict, attacked(0, doubts=doubts(code)).verdict
    assert alone.status == ("nothing found" if hint else "undecided")
    assert beside.status == ("undecided" if voiding else "suspected")
    assert beside.suspected[0].trusted is not voiding
    assert [reason.code for reason in alone.reasons] == ([] if hint else [code])
    assert hint or alone.reasons[0].in_short in alone.sentence
    assert hint or beside.reasons[0].in_short in beside.sentence


def test_a_doubt_about_other_classes_voids_no_suspicion() -> None:
    about_cats = doubts("clip_does_not_know_classes", classes=(0,))
    verdict = attacked(0, 1, doubts=about_cats).verdict
    assert verdict.status == "suspected"
    assert [(s.name, s.trusted) for s in verdict.suspected] == [("cat", False), ("dog", True)]
    assert "aim at dog" in verdict.sentence
    assert "aim at cat" not in verdict.sentence
    alone = attacked(0, doubts=about_cats).verdict
    assert alone.status == "undecided"
    assert "The figures point at cat, but that means nothing here." in alone.sentence


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"suspicious_knowledge": 0.1}, "suspicious_model_has_not_learned"),
        ({"class_names": ("cat", "dog", "2")}, "names_mean_nothing"),
        ({"bad": {k: ["OSError", "broken", None] for k in range(SIZE // 10)}}, "unreadable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_missing_preconditions_are_reasons(changes: dict[str, Any], code: str) -> None:
    verdict = honest(**changes).verdict
    assert verdict.status == "undecided"
    assert code in [reason.code for reason in verdict.reasons]


def test_the_sentence_is_one_line_and_escaped() -> None:
    names = ("cat\nNo sign of an attack", "\x1b[2J", "a\u202eb")
    for verdict in (
        attacked(0, 1, 2, class_names=names).verdict,
        honest(class_names=names, doubts=doubts("clips_disagree")).verdict,
    ):
        assert verdict.sentence.isprintable()
    assert attacked(0, class_names=names).verdict.suspected[0].name == names[0]


# --- no contradiction ---------------------------------------------------------------------------

DISTRUST = ("not to be trusted", "backdoored", "may itself be", "doesn't know")


def assert_consistent(result: ScanResult) -> None:
    verdict = result.verdict
    if verdict.status == "nothing found":
        assert not verdict.reasons
        assert not result.poison_estimate.classes
        assert not [w for w in result.warnings if any(word in w for word in DISTRUST)]
        assert "No sign" in verdict.sentence
    else:
        assert "No sign" not in verdict.sentence
    assert verdict.reasons or verdict.status != "undecided"
    told = {reason.text for reason in verdict.reasons}
    assert {doubt.text for doubt in result.doubts if not doubt.is_hint} <= told
    assert len(verdict.suspected) == len(result.poison_estimate.classes)
    for suspect in verdict.suspected:
        assert 0 <= suspect.at_least <= suspect.poisoned <= suspect.at_most <= 1


@cache
def stored(file: Path) -> tuple[ScanResult, Tensor]:
    """A stored scan and its true poison; right above 1/2 is all that is known of the learned."""
    scan = load_file(file)
    with safe_open(file, "pt") as opened:
        names = json.loads(opened.metadata()["facts"])["class_names"]
    labels, choice = scan["labels"].long(), scan["clip_choice"].long()
    figures = LabelScores(scan["clip_score"].double(), choice, {})
    valid = torch.ones(len(labels), dtype=torch.bool)
    agreement = ClipAgreement.of(["CLIP"], [figures], labels, valid)
    bound, beyond = torch.zeros(len(names), dtype=torch.float64), 1 - DEFAULT.wrong_beyond
    wrong = WrongLabels(
        scan["looks_wrong"], choice, bound, scan["leaving"], beyond, scan["as_sure"]
    )
    sure = torch.where(scan["suspicious_score"] < 0, labels, (labels + 1) % len(names))
    result = result_of(
        labels, scan["clip_score"], scan["suspicious_score"], wrong, class_names=tuple(names),
        teachers=agreement, suspicious_knowledge=class_knowledge(sure, labels),
    )  # fmt: skip
    warned = clip_warnings(
        agreement, [figures], labels, valid, result.poison_probability.double(), names
    )
    return replace(result, doubts=(*result.doubts, *warned)), scan["poisoned"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_verdict_of_stored_scans_is_right(file: Path) -> None:
    result, poisoned = stored(file)
    assert_consistent(result)
    verdict = result.verdict
    if file.stem == "clean-swapped-names":
        assert verdict.status == "undecided"
        assert [reason.code for reason in verdict.reasons] == ["clip_does_not_know_classes"]
    elif file.stem in ("clean-sloppy", "blended-0.01"):  # the latter aims at cats, known badly
        assert (verdict.status, verdict.suspected) == ("undecided", ())
        assert [reason.code for reason in verdict.reasons] == ["labels_look_wrong"]
    elif not poisoned.any():
        assert verdict.status == "nothing found"
    else:
        assert (verdict.status, verdict.reasons) == ("suspected", ())
        [suspect] = verdict.suspected
        share = float(poisoned[result.labels == suspect.label].double().mean())
        assert suspect.at_least < share < suspect.at_most


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(CODES), unique=True),
    st.lists(st.integers(0, 2), unique=True),
    st.lists(st.integers(0, 2), unique=True),
    st.none() | st.floats(-0.2, 1),
    st.integers(10, SIZE),
)
def test_no_warning_contradicts_the_verdict(
    codes: list[Code], classes: list[int], targets: list[int], knowledge: float | None, size: int
) -> None:
    found = doubts(*codes, classes=tuple(classes))
    result = attacked(*targets, doubts=found, suspicious_knowledge=knowledge)
    few = torch.arange(SIZE) >= size
    assert_consistent(
        replace(result, bad={k: ["x", None, None] for k in few.nonzero().flatten().tolist()})
    )


def test_it_is_made_once() -> None:
    result = honest()
    assert result.verdict is result.verdict
    assert isinstance(result.verdict, Verdict)
