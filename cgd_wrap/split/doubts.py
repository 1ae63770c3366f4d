"""What speaks against trusting a scan: warnings of its CLIPs, and preconditions that are missing.

A :class:`Doubt` is what the user is warned of and what the verdict weighs, so that the two can't
contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.escaping import printable
from cgd_wrap.split.power import Power

Code = Literal[
    "clip_does_not_know_classes", "name_given_too_often", "clips_disagree",
    "clip_may_be_backdoored", "names_mean_nothing", "suspicious_model_has_not_learned",
    "too_few_samples", "unreadable", "no_clean_samples", "control_not_found",
    "labels_look_wrong", "warned_by_an_older_version",
]  # fmt: skip
IN_SHORT: dict[Code, str] = {
    "clip_does_not_know_classes": "CLIP doesn't know classes by their names",
    "name_given_too_often": "CLIP gives a class' name too often",
    "clips_disagree": "the CLIPs contradict each other",
    "clip_may_be_backdoored": "a CLIP may itself be backdoored",
    "names_mean_nothing": "names of classes are mere numbers",
    "suspicious_model_has_not_learned": "the suspicious model has not learned the labels",
    "too_few_samples": "there are too few samples",
    "unreadable": "too many samples can't be read",
    "no_clean_samples": "classes have no clean samples",
    "control_not_found": "attacks of ours would not have been noticed",
    "labels_look_wrong": "many labels look wrong, by mistakes or by an attack",
    "warned_by_an_older_version": "an older version warned of CLIP",
}
# Doubts that are a hint to the user alone: they leave the verdict as it is.
HINTS: frozenset[Code] = frozenset({"name_given_too_often"})
# Doubts under which a suspicion of their classes means nothing: right labels look wrong there.
VOIDING: frozenset[Code] = frozenset(
    {
        "clip_does_not_know_classes", "names_mean_nothing", "suspicious_model_has_not_learned",
        "warned_by_an_older_version",
    }
)  # fmt: skip
LISTED = 8  # classes in one message, at most
# "7", "class_3", "label 12", "c5", and WordNet numbers such as "n01440764"
MEANINGLESS = re.compile(
    r"n\d{8}|c_?\d+|((class|label|category|cls|id|target|index)?[\W_]*\d+)", re.IGNORECASE
)


@dataclass(frozen=True)
class Doubt:
    """A reason why what a scan says isn't to be trusted, as a whole or in some classes.

    Attributes:
        code: short name of the kind of doubt.
        why: what was seen, in whole sentences; control characters are escaped.
        what_to_do: advice, in whole sentences.
        classes: numbers of the classes that the doubt is about; empty: it is about all.
    """

    code: Code
    why: str
    what_to_do: str
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in get_args(Code):
            raise ValueError(f"unknown code {self.code!r}, expected one of {get_args(Code)}")
        object.__setattr__(self, "why", printable(self.why))  # it may hold names of classes

    @property
    def text(self) -> str:
        """The doubt as a warning."""
        return f"{self.why} {self.what_to_do}"

    @property
    def in_short(self) -> str:
        """The kind of doubt, as part of a sentence."""
        return IN_SHORT[self.code]

    @property
    def is_hint(self) -> bool:
        """Whether the doubt leaves the verdict as it is."""
        return self.code in HINTS

    def voids(self, label: int) -> bool:
        """Whether a suspicion of the class means nothing under this doubt."""
        return self.code in VOIDING and (not self.classes or label in self.classes)


def preconditions(
    labels: Int[Tensor, "n"],
    readable: Bool[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    class_names: Sequence[str],
    suspicious_knowledge: float | None,
    power: Power | None = None,
    calibration: Calibration = DEFAULT,
) -> Iterator[Doubt]:
    """Find what a scan's figures lack to mean something, whatever they are.

    Args:
        labels: given labels.
        readable: False for samples that don't count.
        clean: members of the clean split.
        class_names: names of the classes, in the order of the labels.
        suspicious_knowledge: the suspicious model's
            :func:`~cgd_wrap.models.class_knowledge.class_knowledge` of the given labels, at most 1.
            None: not known.
        power: what the scan could have seen. None: not measured.
        calibration: thresholds.
    """
    nameless = [k for k, name in enumerate(class_names) if MEANINGLESS.fullmatch(name.strip())]
    if nameless:
        yield Doubt(
            "names_mean_nothing",
            f"CLIP can't know what {listed(nameless, class_names)} stand for: where it contradicts "
            "these labels, that says nothing.",
            "Pass class_names= with a description of each class, in the order of the labels.",
            tuple(nameless),
        )
    if suspicious_knowledge is not None and suspicious_knowledge < calibration.least_learned:
        yield Doubt(
            "suspicious_model_has_not_learned",
            f"The suspicious model is {max(0.0, suspicious_knowledge):.0%} of the way from chance "
            "to knowing the labels that it was trained on (at least "
            f"{calibration.least_learned:.0%} are needed): which labels were learned fast, it "
            "can't tell.",
            "Give it more suspicious_epochs, or more samples. A model of your own must have been "
            "trained on these labels.",
        )
    sizes = torch.bincount(labels[readable], minlength=len(class_names))
    if sizes.sum() < calibration.fewest_scanned or sizes.median() < calibration.fewest_named:
        yield Doubt(
            "too_few_samples",
            f"{int(sizes.sum())} samples, {int(sizes.median())} of the median class, show too "
            f"little (at least {calibration.fewest_scanned:g} and {calibration.fewest_named:g} are "
            "needed): a small attack looks like chance.",
            "Scan more samples.",
        )
    lost = float((~readable).double().mean())
    if lost > calibration.most_unreadable:
        yield Doubt(
            "unreadable",
            f"{lost:.1%} of the samples can't be read: nothing is known of them.",
            "Mend the files, or take them out of the data set.",
        )
    bare = without_clean_samples(labels, clean, len(class_names))
    if bare:
        yield Doubt(
            "no_clean_samples",
            f"No sample of {listed(bare, class_names)} is in the clean split: all of them look "
            "wrong.",
            "Does CLIP know these classes by these names? Try other class_names or prompts.",
            tuple(bare),
        )
    if power is not None:
        blind = [k for k, number in enumerate(power.smallest_noticed) if number is None]
        if 2 * len(blind) >= len(power.smallest_noticed):
            yield Doubt(
                "control_not_found",
                "Attacks of ours, drawn from images with known triggers, would not have been "
                f"noticed under {listed(blind, class_names)}, however large they are.",
                "Take a CLIP that knows these classes better, scan more samples, or give the "
                "suspicious model more suspicious_epochs.",
            )


def wrong_labels(
    classes: Sequence[int], shares: Sequence[float], class_names: Sequence[str]
) -> Doubt:
    """Say that many labels of some classes look wrong, and were learned slowly.

    Args:
        classes: the classes.
        shares: estimated share of wrong labels of every class.
        class_names: names of the classes, in the order of the labels.
    """
    told = ", ".join(f"{shares[k]:.1%} of {class_names[k]!r}" for k in classes[:LISTED])
    more = f" and more of {len(classes) - LISTED} other classes" if len(classes) > LISTED else ""
    return Doubt(
        "labels_look_wrong",
        f"CLIP takes {told}{more} for wrong labels, and they were learned slowly: they are "
        "mistakes, or an attack's whose trigger is hard to learn, or CLIP doesn't know such "
        "images.",
        "Look at these classes' triggered samples in the report.",
        tuple(classes),
    )


def without_clean_samples(
    labels: Int[Tensor, "n"], clean: Bool[Tensor, "n"], number: int
) -> list[int]:
    """Numbers of the classes that have samples, but none in the clean split.

    Args:
        labels: given labels.
        clean: members of the clean split.
        number: number of classes.
    """
    present, kept = (torch.bincount(some, minlength=number) > 0 for some in (labels, labels[clean]))
    found: list[int] = (present & ~kept).nonzero().squeeze(1).tolist()
    return found


def listed(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """Quote the names of some classes; of many, the first."""
    more = f" and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
    return ", ".join(repr(class_names[k]) for k in classes[:LISTED]) + more
