"""The margins of the thresholds, computed anew from the stored scans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, PARTS, Calibration, thresholds
from cgd_wrap.functional import Split, share_by_class
from cgd_wrap.split.class_figures import ClassFigures
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.suspicion import LEAST_RIGHT, Suspicion
from cgd_wrap.split.wrong_labels import WrongLabels

FILES = sorted((Path(__file__).parents[1] / "stored_scans").glob("*.safetensors"))
SWAPPED = "clean-swapped-names"
NOISY = (SWAPPED, "clean-sloppy")
TOLD_OF = "blended-0.01"
FEW = 4  # wrong-looking labels of a class, of which a mean means something
EXACT = 5e-3  # the figures stand there with three digits


@dataclass(frozen=True, eq=False)
class Scan:
    name: str
    labels: Tensor
    ranks: tuple[Tensor, Tensor]
    split: Split
    choice: Tensor
    looks_wrong: Tensor
    leaving: Tensor
    as_sure: Tensor
    target: int | None
    class_names: list[str]

    @property
    def size(self) -> Tensor:
        return torch.bincount(self.labels)

    @property
    def figures(self) -> ClassFigures:
        return ClassFigures.of(self.labels, *self.ranks, self.split.triggered, self.wrong)

    @property
    def wrong(self) -> WrongLabels:
        bound = torch.zeros(len(self.class_names), dtype=torch.float64)
        beyond = 1 - DEFAULT.wrong_beyond
        return WrongLabels(self.looks_wrong, self.choice, bound, self.leaving, beyond, self.as_sure)

    @property
    def suspicion(self) -> Suspicion:
        return Suspicion.of(self.labels, *self.ranks, self.split.triggered, self.wrong)


@cache
def scans() -> tuple[Scan, ...]:
    return tuple(map(read, FILES))


def read(file: Path) -> Scan:
    stored = load_file(file)
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    found = EntropyMap.from_scores(
        stored["clip_score"].double(), stored["suspicious_score"].double()
    )
    return Scan(
        file.stem, stored["labels"].long(), (found.clip_rank, found.suspicious_rank),
        found.split(sigma_slow=0.3), stored["clip_choice"].long(),
        stored["looks_wrong"], stored["leaving"], stored["as_sure"],
        facts["target"] if bool(stored["poisoned"].any()) else None, facts["class_names"],
    )  # fmt: skip


# --- a figure of each class, by the name that the thresholds give it ----------------------------


def suspicion_of(scan: Scan) -> Tensor:
    return scan.figures.suspicion


def far_corner_share(scan: Scan) -> Tensor:
    return scan.figures.far / scan.size


def wrong_share(scan: Scan) -> Tensor:
    return scan.figures.wrong_share


def named_share(scan: Scan) -> Tensor:
    figures = scan.figures
    return figures.named / figures.size / (1 - figures.wrong_share).clamp(min=LEAST_RIGHT)


MEASURES = {
    "suspicion": suspicion_of,
    "far corner": far_corner_share,
    "wrong": wrong_share,
}


def figures(measure: str) -> Iterator[tuple[float, bool]]:
    """Each class' figure in the scans under right names, and whether the class is a target."""
    for scan in scans():
        if scan.name not in NOISY:
            for label, figure in enumerate(MEASURES[measure](scan).tolist()):
                yield figure, label == scan.target


MEASURED = {name: one for name, one in thresholds().items() if one.measure in MEASURES}


@pytest.mark.parametrize("name", MEASURED)
def test_a_threshold_lies_between_what_it_says_was_seen(name: str) -> None:
    one = MEASURED[name]
    found = list(figures(one.measure))
    honest = max(figure for figure, target in found if not target)
    poisoned = min(figure for figure, target in found if target and figure > one.value)
    assert one.honest == pytest.approx(honest, rel=EXACT, abs=1e-9)
    assert one.poisoned == pytest.approx(poisoned, rel=EXACT)
    assert one.honest < one.value < one.poisoned


def test_what_clip_knows_is_told_from_wrongly_named_classes() -> None:
    one = thresholds()["known_by_name"]
    targets = [float(named_share(s)[s.target]) for s in scans() if s.target is not None]
    (swapped,) = (scan for scan in scans() if scan.name == SWAPPED)
    (right,) = (scan.class_names for scan in scans() if scan.name == "clean")
    renamed = [i for i, name in enumerate(right) if swapped.class_names[i] != name]
    wrong = float(named_share(swapped)[renamed].max())
    assert one.honest == pytest.approx(wrong, rel=EXACT)
    assert one.poisoned == pytest.approx(min(targets), rel=EXACT)
    assert one.honest < one.value < one.poisoned


def test_how_sure_clip_is_tells_wrong_labels_from_images_that_it_does_not_know() -> None:
    one = thresholds()["least_as_sure"]
    sure = [
        (float(scan.as_sure[label]), float(scan.figures.wrong_share[label]))
        for scan in scans()
        if scan.name != SWAPPED
        for label in (scan.figures.wrong >= FEW).nonzero().squeeze(1).tolist()
    ]
    # The targets, and the sloppy class, have more wrong labels than all others.
    unknown = max(each for each, share in sure if share < 0.05)
    wrong = min(each for each, share in sure if share > 0.05)
    assert one.honest == pytest.approx(unknown, rel=EXACT)
    assert one.poisoned == pytest.approx(wrong, rel=EXACT)
    assert one.honest < one.value < one.poisoned


def test_how_fast_wrong_labels_are_learned_tells_attacks_from_mistakes() -> None:
    """Attacks that are learned slowly, such as WaNet, are as slow as mistakes."""
    one = thresholds()["wrong_speed"]
    speeds = []
    for scan in scans():
        if scan.name != SWAPPED:
            each = scan.figures.speed / scan.figures.wrong.clamp(min=1)
            enough = (scan.figures.wrong >= 10).nonzero().squeeze(1).tolist()
            speeds += [(float(each[label]), label == scan.target) for label in enough]
    honest = max(speed for speed, target in speeds if not target)
    fast = min(speed for speed, target in speeds if target and speed > one.value)
    assert one.honest == pytest.approx(honest, rel=EXACT)
    assert one.poisoned == pytest.approx(fast, rel=EXACT)
    assert one.honest < one.value < one.poisoned


def test_wrong_labels_of_a_sloppy_class_are_told_of_and_not_suspected() -> None:
    (sloppy,) = (scan for scan in scans() if scan.name == "clean-sloppy")
    suspicion = sloppy.suspicion
    assert not suspicion.suspected.any()
    assert suspicion.looks_wrong.nonzero().squeeze(1).tolist() == [3]
    assert float(sloppy.figures.wrong_share[3]) == pytest.approx(0.3, abs=0.05)


def test_classes_get_their_name_and_swapped_ones_do_not() -> None:
    for scan in scans():
        hits = share_by_class(scan.choice == scan.labels, scan.labels)
        assert int((hits >= DEFAULT.known_by_name).sum()) == (6 if scan.name == SWAPPED else 10)


def test_the_target_and_nothing_else_is_suspected_or_told_of() -> None:
    """Blended at 1% aims at cats, which CLIP knows badly, and half of it is learned late."""
    for scan in scans():
        if scan.name not in NOISY:
            suspicion = scan.suspicion
            found = suspicion.looks_wrong if scan.name == TOLD_OF else suspicion.suspected
            expected = [] if scan.target is None else [scan.target]
            assert found.nonzero().squeeze(1).tolist() == expected, scan.name


# --- the value ----------------------------------------------------------------------------------


def test_every_threshold_says_what_it_is() -> None:
    for name, one in thresholds().items():
        assert one.part in PARTS
        assert one.unit
        assert one.text.endswith("."), name
        assert getattr(DEFAULT, name) == one.value
        assert (one.honest is None and one.poisoned is None) or one.data, name


def test_one_number_for_one_idea() -> None:
    assert DEFAULT.outstanding_suspicion == DEFAULT.chance_suspicion / 2
    a = (1 - 0.9**5) / 5  # ranks that are independent, at sigma_triggered=0.1
    assert pytest.approx(2 * a / 5 - a**2, abs=2e-4) == DEFAULT.chance_suspicion


def test_other_thresholds_are_named_and_checked() -> None:
    assert Calibration.from_dict({"far_corner": 0.8}).far_corner == 0.8
    with pytest.raises(ValueError, match="far_corners"):
        Calibration.from_dict({"far_corners": 0.8})
    with pytest.raises(ValueError, match="evidence_needed=-1"):
        Calibration(evidence_needed=-1)


def test_a_threshold_decides() -> None:
    scan = next(scan for scan in scans() if scan.name == "badnets-0.01")
    high = Calibration(evidence_needed=1e6)
    assert scan.suspicion.suspected.any()
    assert not Suspicion.of(
        scan.labels, *scan.ranks, scan.split.triggered, scan.wrong, high
    ).suspected.any()
