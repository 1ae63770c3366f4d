"""Summing up a report as JSON values, and the agreement of CLIPs as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cgd_wrap.report.classes import most_suspicious
from cgd_wrap.report.value import Report
from cgd_wrap.split.clip_agreement import ClipAgreement


def in_words(teachers: ClipAgreement, class_names: Sequence[str]) -> list[str]:
    """Say in sentences how far the CLIPs agree with the labels, and with each other.

    Args:
        teachers: agreement of the scan's CLIPs.
        class_names: names of the classes, in the order of the labels.
    """
    lines = [
        f"{name} agrees with {share:.1%} of the labels."
        for name, share in zip(teachers.names, teachers.agreement, strict=True)
    ]
    if teachers.lowest_class is not None:
        lines.append(
            f"All of them choose the same class for {teachers.consensus:.1%} of the samples; least "
            f"often for those labelled {class_names[teachers.lowest_class]!r}, "
            f"{teachers.lowest_consensus:.1%}."
        )
    return lines


def summarise(report: Report) -> dict[str, Any]:
    """Sum up a report as one JSON value; numbers that aren't finite become null."""
    result = report.result
    value = {
        "verdict": result.verdict.as_dict(),
        "control": [] if result.power is None else [asdict(one) for one in result.power.control],
        "warnings": list(result.warnings),
        "teachers": asdict(result.teachers),
        "samples": len(result.split),
        "split": result.split.counts(),
        "thresholds": report.thresholds,
        "suspected_target_classes": [one.label for one in result.poison_estimate.classes],
        "estimated_poison_rate": result.poison_estimate.rate,
        "classes": [asdict(row) for row in report.rows],
        "most_suspicious": most_suspicious(result.entropy_map),
        "figures": report.all_figures,
        "stage_seconds": dict(report.stage_seconds or {}),
        "bad": {index: list(why) for index, why in sorted(result.bad.items())},
    }
    finite: dict[str, Any] = _finite(value)
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
