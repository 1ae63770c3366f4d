"""What a scan says of a data set, in three words, and why it may have to leave that open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.escaping import printable
from cgd_wrap.split.doubts import LISTED, Doubt, listed
from cgd_wrap.split.estimate import PoisonEstimate
from cgd_wrap.split.power import Power

Status = Literal["suspected", "nothing found", "undecided"]
UNMEASURED = "How small an attack this scan would have noticed was not measured."


@dataclass(frozen=True)
class Suspect:
    """A class that an attack seems to aim at, as the verdict names it.

    Attributes:
        name: name of the class.
        label: number of the class.
        poisoned: estimated share of the class' samples that are poisoned, in [0, 1].
        at_least: lower end of the interval that the true share should lie in.
        at_most: upper end.
        confidence: probability that the class' suspicion is above what honest classes have, in
            [0, 1].
        found_by_clip_alone: whether wrong labels for another reason would look the same.
        trusted: False where a reason voids the suspicion of this class.
    """

    name: str
    label: int
    poisoned: float
    at_least: float
    at_most: float
    confidence: float
    found_by_clip_alone: bool
    trusted: bool

    @property
    def sentence(self) -> str:
        """The suspicion in plain English, in one line."""
        wrong = ", or many of its labels are wrong" if self.found_by_clip_alone else ""
        return printable(
            f"An attack seems to aim at {self.name}{wrong}: {self.poisoned:.1%} of its samples "
            f"look poisoned ({self.at_least:.1%} to {self.at_most:.1%}; confidence "
            f"{self.confidence:.1%})."
        )


@dataclass(frozen=True)
class Verdict:
    """What a scan says of a data set.

    Attributes:
        status: "suspected": an attack seems to aim at some classes. "nothing found": no class
            stands out, and nothing speaks against trusting that. "undecided": what the scan says
            isn't to be trusted, for ``reasons``.
        suspected: the suspected classes, by falling evidence; under "undecided", those whose
            suspicion means nothing.
        reasons: what speaks against trusting the scan: why it is undecided, or, beside suspected
            classes, what to bear in mind.
        smallest_noticed: by name of a class, the smallest number of poisoned samples that this scan
            would have noticed with a probability of 95%; None for a class: no number of them. None:
            not measured.
    """

    status: Status
    suspected: tuple[Suspect, ...] = ()
    reasons: tuple[Doubt, ...] = ()
    smallest_noticed: Mapping[str, int | None] | None = None

    @classmethod
    def of(
        cls,
        estimate: PoisonEstimate,
        labels: Int[Tensor, "n"],
        readable: Bool[Tensor, "n"],
        probability: Float[Tensor, "n"],
        class_names: Sequence[str],
        doubts: Sequence[Doubt],
        power: Power | None = None,
        calibration: Calibration = DEFAULT,
    ) -> Verdict:
        """Weigh a scan's suspicions and doubts.

        Args:
            estimate: the suspected classes.
            labels: given labels.
            readable: False for samples that don't count.
            probability: probability that each sample is poisoned, in [0, 1].
            class_names: names of the classes, in the order of the labels.
            doubts: all that speaks against trusting the scan.
            power: what the scan could have seen. None: not measured.
            calibration: thresholds.
        """
        reasons = tuple(doubt for doubt in doubts if not doubt.is_hint)
        suspected = []
        for found in estimate.classes:
            likely = probability[(labels == found.label) & readable].double()
            mistakes = float(torch.minimum(likely, 1 - likely).mean())
            margin = calibration.estimate_mistakes * mistakes
            suspected.append(
                Suspect(
                    class_names[found.label], found.label, found.poisoned,
                    max(0.0, found.poisoned - margin), min(1.0, found.poisoned + margin),
                    found.confidence, found.found_by_clip_alone,
                    trusted=not any(reason.voids(found.label) for reason in reasons),
                )
            )  # fmt: skip
        status: Status = "undecided" if reasons else "nothing found"
        if any(suspect.trusted for suspect in suspected):
            status = "suspected"
        elif suspected:
            status = "undecided"
        smallest = None
        if power is not None:
            smallest = dict(zip(class_names, power.smallest_noticed, strict=False))
        return cls(status, tuple(suspected), reasons, smallest)

    @property
    def sentence(self) -> str:
        """The verdict in plain English, in one line."""
        why = "; ".join(dict.fromkeys(reason.in_short for reason in self.reasons))
        if self.status == "undecided":
            names = ", ".join(printable(suspect.name) for suspect in self.suspected[:LISTED])
            aim = f" The figures point at {names}, but that means nothing here." if names else ""
            return f"Undecided whether there is an attack: {why}.{aim}"
        if self.status == "nothing found":
            return f"No sign of an attack: no class stands out. {self._hidden}"
        trusted = [suspect for suspect in self.suspected if suspect.trusted]
        more = f" And at {len(trusted) - LISTED} more classes." if len(trusted) > LISTED else ""
        named = " ".join(suspect.sentence for suspect in trusted[:LISTED])
        return f"{named}{more}" + (f" Bear in mind: {why}." if why else "")

    @property
    def _hidden(self) -> str:
        """What could hide from the scan."""
        if self.smallest_noticed is None:
            return UNMEASURED
        seen = {name: one for name, one in self.smallest_noticed.items() if one is not None}
        blind = [name for name in self.smallest_noticed if name not in seen]
        most = sorted(seen, key=lambda name: -seen[name])
        parts = [
            f"fewer than {seen[name]} poisoned samples under {printable(name)!r}"
            for name in [*most[:1], *(most[-1:] if len(most) > 1 else [])]
        ]
        text = f"{' or '.join(parts)} could hide" if parts else ""
        if blind:
            names = listed(range(len(blind)), [printable(name) for name in blind])
            text += f"{', and ' if parts else ''}any number under {names}"
        return f"{text[:1].upper()}{text[1:]}."

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values, with its sentence."""
        return {**asdict(self), "sentence": self.sentence}
