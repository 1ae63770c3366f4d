"""A setting, written once: default, allowed values, the paper's value, its source, and its stage.

Validation, the presets, the docstring of :class:`CGDConfig`, the page ``docs/settings.md`` and the
list of what :meth:`CGDGuard.fit` may change are all made from these.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cgd_wrap.config.checks import Check

# Stages, in the order in which a guarded run goes through them.
SCAN, SPLIT, LOSS, SAMPLES, FIT = "scan", "split", "loss", "samples", "fit"
EVERYWHERE = "everywhere"
STAGES = {
    SCAN: "What is read and scored",
    SPLIT: "Which samples are clean, triggered and mixed",
    LOSS: "What a clean and a triggered sample weigh in the loss",
    SAMPLES: "Which samples an epoch holds",
    FIT: "The training loop of guard.fit, and when it stops",
    EVERYWHERE: "Everywhere",
}
TRAINING = (LOSS, SAMPLES, FIT, EVERYWHERE)  # what can still be changed after the scan
UNKNOWN = object()  # the paper and its code have nothing to say of a setting


@dataclass(frozen=True)
class Setting:
    """Everything about a setting but its name and type.

    Attributes:
        default: its value where nothing is said.
        stage: one of ``STAGES``.
        check: whether a value is allowed, and the words for what is.
        text: what the setting means, in whole sentences.
        symbol: its name in the paper, or "".
        paper: its value in ``CGDConfig.paper()``; ``UNKNOWN`` where that keeps the default.
        source: where the paper's value comes from: ``"paper"`` or ``"reference code"``.
        repaired: its value for a model that is repaired, where the default is None.
        from_scratch: the same for a model that is trained from scratch.
    """

    default: Any
    stage: str
    check: Check
    text: str
    symbol: str = ""
    paper: Any = UNKNOWN
    source: str = "paper"
    repaired: float | None = None
    from_scratch: float | None = None

    def accepts(self, value: Any) -> bool:
        """Whether the value is allowed."""
        return self.check[0](value)

    @property
    def expected(self) -> str:
        """The words for what is allowed."""
        return self.check[1]

    def facts(self) -> list[str]:
        """Allowed values, default and origin, a sentence each."""
        found = [f"Allowed: {self.expected}.", f"Default: {self.default!r}."]
        if self.repaired is not None:
            found.append(
                f"None means {self.repaired:g} for a model that is repaired and "
                f"{self.from_scratch:g} for one that is trained from scratch."
            )
        if self.paper is not UNKNOWN:
            found.append(f"{self.source[0].upper()}{self.source[1:]}: {self.paper!r}.")
        return found


def setting(default: Any, stage: str, check: Check, text: str, **facts: Any) -> Any:
    """A dataclass field with its :class:`Setting` as metadata; the arguments are the Setting's."""
    found = Setting(default, stage, check, " ".join(text.split()), **facts)
    return dataclasses.field(default=default, metadata={"setting": found})


def settings_of(config: Any) -> dict[str, Setting]:
    """The settings of a configuration class (or of one of its values) by name, in its order."""
    return {
        part.name: part.metadata["setting"]
        for part in dataclasses.fields(config)
        if "setting" in part.metadata
    }


def faults_in(config: Any, settings: Mapping[str, Setting]) -> list[str]:
    """Name each setting of a configuration whose value isn't allowed, and say what is."""
    return [
        f"{name}={getattr(config, name)!r} must be {found.expected}"
        for name, found in settings.items()
        if not found.accepts(getattr(config, name))
    ]


def attributes_section(settings: Mapping[str, Setting]) -> str:
    """The settings as the ``Attributes:`` section of a class' docstring, stage by stage."""
    ordered = [
        (name, found) for stage in STAGES for name, found in settings.items()
        if found.stage == stage
    ]  # fmt: skip
    parts = (
        textwrap.fill(
            f"{name}: {found.text}{f' Symbol: {found.symbol}.' if found.symbol else ''} "
            f"{' '.join(found.facts())} Stage: {found.stage}.",
            width=100,
            initial_indent=8 * " ",
            subsequent_indent=12 * " ",
        )
        for name, found in ordered
    )
    return "\n".join(["    Attributes:", *parts])
