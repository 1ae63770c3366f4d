"""The content of a report, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.data.paths import ImagePaths
from cgd_wrap.metrics import detection_figures
from cgd_wrap.report.classes import ClassRow, class_rows
from cgd_wrap.scan.subject import Subject
from cgd_wrap.split.result import ScanResult

TITLE = "Which samples are poisoned?"


@dataclass(frozen=True, eq=False)
class Report:
    """The content of a report: the result of a scan, and everything needed to show the result.

    :func:`write_report` writes the report. It shows what the scan decided: entropy map, split,
    estimate and warnings are those of the result, and nothing is judged anew.

    Attributes:
        result: result of the scan.
        class_names: names of the classes, in the order of the labels.
        paths: paths of the samples' files, if known.
        images: raw images by index, for thumbnails.
        poisoned: True for each poisoned sample, if known; adds figures of how well poison is found.
        figures: measured figures by name, such as ``BackdoorFigures.as_dict()``, or several
            such dicts by column: ``{"before": ..., "after": ...}``.
        stage_seconds: wall-clock seconds by stage.
        title: heading of the page.

    Raises:
        ValueError: the columns are of different length, or a label is no class.
    """

    result: ScanResult
    class_names: Sequence[str]
    paths: Sequence[str | None] | None = None
    images: Any = None
    poisoned: Bool[Tensor, "n"] | None = None
    figures: Mapping[str, Any] | None = None
    stage_seconds: Mapping[str, float] | None = None
    title: str = TITLE

    @classmethod
    def of(cls, result: ScanResult, subject: Subject, **details: Any) -> Report:
        """Make the report of a scan, with paths and images of the scanned samples.

        Args:
            result: result of the scan.
            subject: the data, model and CLIP that were scanned.
            details: ``poisoned``, ``figures``, ``stage_seconds`` and ``title``.
        """
        paths = list(map(ImagePaths(subject.dataset).of, range(len(subject.labels))))
        return cls(
            result, subject.class_names, paths if any(paths) else None,
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
        """A row for each class: its samples in the split, and what is suspected of the class."""
        result = self.result
        return class_rows(result.split, self.labels, self.class_names, result.poison_estimate)

    @property
    def all_figures(self) -> dict[str, Any]:
        """The measured figures; if the true poison is known, also how well the split finds it."""
        found = dict(self.figures or {})
        if self.poisoned is not None:
            result = self.result
            detection = detection_figures(result.entropy_map, result.split, self.poisoned)
            found["detection"] = detection.as_dict()
        return found

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds of the split, by the names that page and summary give them."""
        config = self.result.config
        found = {
            "clean": config.sigma_clean, "triggered": config.sigma_triggered,
            "slow": config.sigma_slow, "corner": config.corner_cut, "poison": config.poison_cut,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}
