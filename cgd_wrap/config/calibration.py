"""The thresholds that were chosen by looking at data, with the data and the margins they leave.

The suspicion, the warnings about CLIP, the measure of what a model knows, and the share that CLIP
has in the guidance all compare a figure of a scan with a number. Each of these numbers stands here
once, with its unit and with what was seen on both sides of it: the highest figure of honest classes
and the lowest of poisoned ones. ``docs/calibration.md`` is made from this module, and
``tests/config/test_calibration.py`` computes the figures anew from ``tests/stored_scans``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SUSPICION, WARNINGS, VERDICT = "suspicion", "warnings", "verdict"
KNOWLEDGE, GUIDANCE = "knowledge", "guidance"
PARTS = {
    SUSPICION: "Which classes an attack seems to aim at",
    WARNINGS: "When CLIP is not to be trusted",
    VERDICT: "When a scan's figures mean something",
    KNOWLEDGE: "Whether the model is repaired or trained from scratch",
    GUIDANCE: "How far CLIP teaches",
}
STORED = "tests/stored_scans"  # CIFAR-10, 12,000 images, a tiny CLIP of 74.2% zero-shot accuracy
TABLE = "examples/results/table.md"  # CIFAR-10, and 20 classes made of it; scans not stored


@dataclass(frozen=True)
class Threshold:
    """Everything about a threshold but its name.

    Attributes:
        value: the threshold.
        part: one of ``PARTS``.
        unit: what it is a number of.
        text: what it decides, in whole sentences.
        data: where the two figures were seen.
        honest: highest figure in honest classes (or on honest data), or None where not measured.
        poisoned: lowest figure in classes whose poison this threshold finds (or on data that
            deserve the warning), or None where not measured.
        measure: name under which ``tests/config/test_calibration.py`` computes the figure, or "".
    """

    value: float
    part: str
    unit: str
    text: str
    data: str = ""
    honest: float | None = None
    poisoned: float | None = None
    measure: str = ""


def threshold(value: float, part: str, unit: str, text: str, **facts: Any) -> Any:
    """A dataclass field with its :class:`Threshold`; the arguments are the Threshold's."""
    found = Threshold(value, part, unit, " ".join(text.split()), **facts)
    return dataclasses.field(default=value, metadata={"threshold": found})


@dataclass(frozen=True)
class Calibration:
    """Every threshold that was chosen by looking at data.

    A result that was saved under other numbers is refused by name when it is loaded. Each field's
    meaning is in its :class:`Threshold`, and in ``docs/calibration.md``.
    """

    # --- which classes an attack seems to aim at ---
    evidence_needed: float = threshold(
        3.0, SUSPICION, "standard errors", "Evidence above which a class is suspected."
    )
    corner_power: float = threshold(
        4.0, SUSPICION, "exponent",
        "Power of clip_rank (1 - suspicious_rank) that a sample adds to its class' suspicion.",
    )  # fmt: skip
    chance_suspicion: float = threshold(
        0.026, SUSPICION, "mean weight of a class' samples",
        """Suspicion that an honest class may have. It is that of a class whose two ranks are
        independent, at sigma_triggered=0.1: 2 a / 5 - a^2 with a = (1 - 0.9^5) / 5. What is hard
        for one model is hard for the other, too, so that honest classes stay below. In the scans
        of the results table honest classes came to 0.006, with a CLIP of 47%, too.""",
        data=STORED, honest=0.00264, poisoned=0.0764, measure="suspicion",
    )  # fmt: skip
    outstanding_suspicion: float = threshold(
        0.013, SUSPICION, "mean weight of a class' samples",
        "What an honest class may have that stands out (outstanding_times): half of the chance's.",
        data=STORED, honest=0.00264, poisoned=0.0145, measure="suspicion",
    )  # fmt: skip
    outstanding_times: float = threshold(
        3.0, SUSPICION, "times the classes' median", "From here on a class' suspicion stands out."
    )
    far_corner: float = threshold(
        0.9, SUSPICION, "clip_rank (1 - suspicious_rank)", "Where the map's far corner begins."
    )
    far_corner_share: float = threshold(
        0.001, SUSPICION, "share of a class",
        "Share of an honest class that may lie in the far corner (0.0005 in the results' scans).",
        data=STORED, honest=0.0, poisoned=0.00148, measure="far corner",
    )  # fmt: skip
    far_corner_times: float = threshold(
        3.0, SUSPICION, "times the other classes' share",
        "How much more of an honest class may lie in the far corner than of the others together.",
    )  # fmt: skip
    far_corner_most: float = threshold(
        0.02, SUSPICION, "share of a class",
        """Whatever the others have, no honest class has more than this in the far corner: an
        attack may aim at all classes.""",
    )  # fmt: skip
    wrong_beyond: float = threshold(
        0.75, SUSPICION, "share of other classes' images",
        "A label looks wrong if CLIP contradicts it more than it would for this share of them.",
    )  # fmt: skip
    wrong_share: float = threshold(
        0.01, SUSPICION, "share of a class", "Share of an honest class whose labels may be wrong.",
        data=STORED, honest=0.00383, poisoned=0.0548, measure="wrong",
    )  # fmt: skip
    wrong_spreads: float = threshold(
        3.0, SUSPICION, "the classes' standard deviations", "How much more it may be than in most."
    )
    wrong_times: float = threshold(
        3.0, SUSPICION, "times the classes' median", "Up to here CLIP may know a class less well."
    )
    wrong_speed: float = threshold(
        1 / 3, SUSPICION, "area under the ROC curve",
        "How fast these may be learned, against a class' right labels, where they stand out.",
        data=STORED, honest=0.0885, poisoned=0.463,
    )  # fmt: skip
    outflow_times: float = threshold(
        2.0, SUSPICION, "times those that go the other way", "Above this, they aren't mistakes."
    )
    most_from_one: float = threshold(
        0.5, SUSPICION, "share of these", "If more are images of one class, they are mistakes."
    )
    least_as_sure: float = threshold(
        0.4, SUSPICION, "area under the ROC curve",
        "CLIP knows the right class of wrong labels about as surely as that of other images.",
        data=STORED, honest=0.286, poisoned=0.451,
    )  # fmt: skip
    rejection_power: float = threshold(
        8.0, SUSPICION, "exponent",
        "Power of clip_rank that tells poison from honest samples where CLIP alone finds it.",
    )  # fmt: skip
    sure_of_poison: float = threshold(
        0.9, SUSPICION, "probability of poison", "Above this, a sample is taken for poisoned."
    )
    unlikely_poison: float = threshold(
        0.05, SUSPICION, "probability of poison", "Below this, a mixed sample is taken for clean."
    )
    always_clean: float = threshold(
        0.25, SUSPICION, "share of a class' clean samples",
        """The samples of a suspected class that lie farthest from the corner stay clean, whatever
        their probability: otherwise nothing would teach the class.""",
    )  # fmt: skip
    # --- when CLIP is not to be trusted ---
    least_agreement: float = threshold(
        0.2, WARNINGS, "of the way from chance to all labels",
        """CLIP that agrees with fewer labels than this can't tell wrong ones from right ones.""",
    )  # fmt: skip
    never_named: float = threshold(
        0.05, WARNINGS, "share of a class", "Below this, CLIP almost never gives a class its name."
    )
    rarely_named: float = threshold(
        0.1, WARNINGS, "times known classes' median of hits", "Below this, such a class is unknown."
    )
    doubtful_name: float = threshold(
        1 / 3, WARNINGS, "share of a class",
        "Classes that get their name less often are looked at for swapped names.",
    )  # fmt: skip
    swapped_name: float = threshold(
        0.3, WARNINGS, "share of a class",
        "From here on, another class' name that is given instead may be the swapped one.",
    )  # fmt: skip
    swapped_times: float = threshold(
        2.0, WARNINGS, "times as often as its own name",
        "From here on, another class' name that is given instead may be the swapped one.",
    )  # fmt: skip
    known_by_name: float = threshold(
        0.3, WARNINGS, "share of a class",
        """From this share that gets its own name, CLIP may be said to know a class; what it
        contradicts of another says nothing. In the suspicion, it is that of the samples that look
        right. *Honest* is the highest share of a class under a wrong name, *poisoned* the lowest of
        a target under its own.""",
        data=STORED, honest=0.238, poisoned=0.486, measure="named",
    )  # fmt: skip
    fewest_named: float = threshold(
        30, WARNINGS, "samples", "Of fewer samples, a class' shares say little."
    )
    greedy_times: float = threshold(
        3.0, WARNINGS, "times as often as labelled", "Above this, a name is given too often."
    )
    greedy_excess: float = threshold(
        0.02, WARNINGS, "share of all samples", "A name given too often has this many more, too."
    )
    discord: float = threshold(
        0.05, WARNINGS, "share of all samples",
        "How much less than by independent errors two honest CLIPs may agree with each other.",
    )  # fmt: skip
    class_gap: float = threshold(
        0.4, WARNINGS, "difference of two CLIPs' shares of a class",
        "From here on, either one CLIP doesn't know the class, or the other vouches for poison.",
    )  # fmt: skip
    unusual_gap: float = threshold(
        0.3, WARNINGS, "the same difference", "The same gap, beyond the two CLIPs' on all classes."
    )
    vouches: float = threshold(
        0.6, WARNINGS, "share of the samples that look poisoned",
        "From here on, a CLIP that takes them for their label may share the attacker's backdoor.",
    )  # fmt: skip
    contradicts: float = threshold(
        0.3, WARNINGS, "share of the samples that look poisoned",
        "Up to here, another CLIP contradicts their label, so that the two can be compared.",
    )  # fmt: skip
    group_apart: float = threshold(
        0.9, WARNINGS, "area under the ROC curve",
        """How well a group of CLIP's own features tells fast samples from slow ones, from which
        the CLIP may itself be backdoored. A CLIP that had learned BadNets at 1% came to 0.80, and
        is missed.""",
        data=TABLE, honest=0.84, poisoned=0.98,
    )  # fmt: skip
    fewest_grouped: float = threshold(
        60, WARNINGS, "samples", "Of fewer samples, two groups of features say little."
    )
    # --- when a scan's figures mean something ---
    least_learned: float = threshold(
        0.25, VERDICT, "balanced accuracy, from chance (0) to perfect (1)",
        """Below this, how fast a label was learned says nothing. On 2,000 images three networks
        (ours, ResNet-9, ResNet-18) had 0.01 to 0.19 by 1 or 2 epochs, 0.43 to 0.66 by five.""",
        data="CIFAR-10 and 20 classes of Tiny ImageNet, clean and under BadNets at 5%",
    )  # fmt: skip
    fewest_scanned: float = threshold(
        1000, VERDICT, "readable samples",
        """Of fewer samples, an attack on 1% has less than ten. n equal weights add up to sqrt(n) of
        their standard errors: nine, all at the end of the map, to evidence_needed at the most.""",
    )  # fmt: skip
    most_unreadable: float = threshold(
        0.05, VERDICT, "share of samples",
        "If more can't be read, as many are unknown as a usual attack poisons.",
    )  # fmt: skip
    estimate_mistakes: float = threshold(
        2.0, VERDICT, "times the expected mistakes",
        """How far the true share of poison in a suspected class may be from the estimate: by twice
        the mistakes that the mixture of two kinds expects. In the stored scans: up to 1.84.""",
    )  # fmt: skip
    # --- whether the model is repaired or trained from scratch ---
    least_knowledge: float = threshold(
        0.15, KNOWLEDGE, "balanced accuracy, from chance (0) to perfect (1)",
        "From here on, a model knows the classes already, and is repaired.",
    )  # fmt: skip
    # --- how far CLIP teaches ---
    no_guidance: float = threshold(
        0.4, GUIDANCE, "agreement with honest labels, from chance (0) to all (1)",
        """Up to here, CLIP doesn't teach. On CIFAR-10 under BadNets at 10%, a CLIP of 48% zero-shot
        accuracy came to 75.3% clean and 63.7% robust accuracy with guidance_weight=4, and to
        76.3 and 69.8% with 0.25.""",
    )  # fmt: skip
    full_guidance: float = threshold(
        0.7, GUIDANCE, "agreement with honest labels, from chance (0) to all (1)",
        """From here on, CLIP teaches with the full guidance_weight. A CLIP of 57% came to 75.3 and
        69.9% with 4, and to 76.1 and 69.4% with 1.5; one of 83% to 76.8 and 77.2% with 4.""",
    )  # fmt: skip

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < math.inf
        ]
        if wrong:
            raise ValueError(f"Calibration: {', '.join(wrong)} must be finite numbers, 0 or more")
        if not self.no_guidance < self.full_guidance:
            raise ValueError(
                f"Calibration: no_guidance={self.no_guidance} must be below "
                f"full_guidance={self.full_guidance}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The default thresholds with some changed.

        Raises:
            ValueError: some names are no thresholds; they are named.
        """
        known = thresholds()
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            raise ValueError(f"unknown thresholds {unknown}; they are {sorted(known)}")
        return cls(**values)


def thresholds() -> dict[str, Threshold]:
    """Every threshold by name, in the order of the fields."""
    return {one.name: one.metadata["threshold"] for one in dataclasses.fields(Calibration)}


DEFAULT = Calibration()
