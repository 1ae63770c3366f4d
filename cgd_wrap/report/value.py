"""All that a report says, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.data.paths import image_path
from cgd_wrap.metrics import detection_figures
from cgd_wrap.report.classes import ClassRow, class_rows
from cgd_wrap.scan.subject import Subject
from cgd_wrap.split.result import ScanResult

TITLE = "Which samples are poisoned?"


@dataclass(frozen=True, eq=False)
class Report:
    """A scan's outcome, with what is needed to show it; :func:`write_report` writes it.

    The report shows what the scan decided: map, split, estimate and warnings are those of the
    result, and nothing is judged anew.

    Attributes:
        result: of the scan.
        class_names: C names.
        config: that the scan was made with; its thresholds are named on the page.
        paths: the samples' files, where they are known.
        images: raw images by index, for thumbnails.
        poisoned: the truth, where it is known; adds the detection figures.
        figures: measured figures by name, such as ``BackdoorFigures.as_dict()``, or several
            such dicts by column: ``{"before": ..., "after": ...}``.
        stage_seconds: wall-clock seconds by stage.
        title: heading of the page.

    Raises:
        ValueError: the columns are of different length, or a label is no class.
    """

    result: ScanResult
    class_names: Sequence[str]
    config: CGDConfig = field(default_factory=CGDConfig)
    paths: Sequence[str | None] | None = None
    images: Any = None
    poisoned: Bool[Tensor, "n"] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    title: str = TITLE

    @classmethod
    def of(cls, result: ScanResult, subject: Subject, config: CGDConfig, **details: Any) -> Report:
        """The report of a scan, with the files and images of what was scanned.

        Args:
            result: of the scan.
            subject: that was scanned.
            config: of the scan.
            details: ``poisoned``, ``figures``, ``stage_seconds`` and ``title``.
        """
        paths = [image_path(subject.dataset, index) for index in range(len(subject.labels))]
        return cls(
            result, subject.class_names, config, paths if any(paths) else None,
            subject.raw_view(), **details,
        )  # fmt: skip

    @property
    def labels(self) -> Int[Tensor, "n"]:
        """The given labels, in [0, C)."""
        return self.result.labels

    def __post_init__(self) -> None:
        expected = len(self.result.entropy_map)
        columns: dict[str, Any] = {
            "split": self.result.split, "labels": self.labels, "paths": self.paths,
            "poisoned": self.poisoned,
        }  # fmt: skip
        wrong = [
            f"{name} has {len(column)}"
            for name, column in columns.items()
            if column is not None and len(column) != expected
        ]
        if wrong:
            raise ValueError(
                f"the entropy map has {expected} samples, but {', '.join(wrong)}: pass columns of "
                "one dataset"
            )
        classes = len(self.class_names)
        outside = ((self.labels < 0) | (self.labels >= classes)).nonzero().flatten()
        if len(outside):
            raise ValueError(
                f"{len(outside)} labels are no class of {classes} (first: sample "
                f"{int(outside[0])} with {int(self.labels[outside[0]])}): pass a name for every "
                "class"
            )

    @cached_property
    def rows(self) -> list[ClassRow]:
        """The split and the suspicion, class by class."""
        result = self.result
        return class_rows(result.split, self.labels, self.class_names, result.poison_estimate)

    @property
    def all_figures(self) -> dict[str, Any]:
        """The measured figures; with the truth at hand, those of the detection, too."""
        found = dict(self.figures)
        if self.poisoned is not None:
            result = self.result
            detection = detection_figures(result.entropy_map, result.split, self.poisoned)
            found["detection"] = detection.as_dict()
        return found

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds of the split by the name that page and summary have for them."""
        config = self.config
        found = {
            "clean": config.sigma_clean, "triggered": config.sigma_triggered,
            "slow": config.sigma_slow, "corner": config.corner_cut, "poison": config.poison_cut,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}
