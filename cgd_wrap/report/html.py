"""Writing the report as one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cgd_wrap.errors import MissingExtraError
from cgd_wrap.escaping import printable
from cgd_wrap.files import write_atomically
from cgd_wrap.report.classes import most_suspicious
from cgd_wrap.report.summary import in_words
from cgd_wrap.report.thumbnails import thumbnail
from cgd_wrap.report.value import Report

_FIGURES = {
    "clean_accuracy": "clean accuracy (CA)",
    "attack_success_rate": "attack success rate (ASR)",
    "natural_rate": "natural rate: the floor of ASR",
    "robust_accuracy": "robust accuracy (RA)",
    "poison_left_in_clean": "poison left in the clean split",
    "poison_in_triggered": "poison found by the triggered split",
    "precision": "precision of the triggered split",
    "auroc_clip": "area under the ROC curve, CLIP rank",
    "auroc_suspicious": "area under the ROC curve, suspicious rank",
}


def write_page(path: Path, report: Report, picture: bytes) -> Path:
    """Write the report as HTML: no script, nothing loaded from elsewhere, all text escaped.

    Args:
        path: path of the file.
        report: the report to write.
        picture: picture of the entropy map, as the bytes of a PNG file.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("report", "jinja2") from error

    template = resources.files("cgd_wrap.report").joinpath("page.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    # Class names and paths are foreign text, so every text value is escaped.
    environment.finalize = lambda value: printable(value) if type(value) is str else value
    result, rows = report.result, report.rows
    thresholds = result.config.calibration
    probability = thresholds.sure_of_poison, thresholds.unlikely_poison
    text = environment.from_string(template).render(
        title=report.title,
        counts=result.split.counts(),
        samples=len(result.split),
        rows=sorted(rows, key=lambda row: -row.lift),
        suspected=[row for row in rows if row.suspected],
        poison_rate=result.poison_estimate.rate,
        auto=probability if result.config.sigma == "auto" else None,
        figure="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        thresholds=report.thresholds,
        worst=_worst(report),
        bad=sorted(result.bad.items())[:100],
        has_paths=any(report.paths or ()),
        has_images=report.images is not None,
        figures=_figure_tables(report.all_figures),
        stage_seconds=report.stage_seconds or {},
        verdict=result.verdict,
        power=result.power,
        noticed=_noticed(report),
        hints=[doubt.text for doubt in result.doubts if doubt.is_hint],
        teachers=in_words(result.teachers, report.class_names),
    )
    write_atomically(path, text.encode("utf-8"))
    return path


def _noticed(report: Report) -> list[str]:
    """The smallest attack that would have been noticed under each class, as the page shows it."""
    power = report.result.power
    numbers = [] if power is None else list(power.smallest_noticed)
    shown = ["no number" if one is None else f"{one:,}" for one in numbers]
    return shown + ["–"] * (len(report.class_names) - len(shown))  # classes without samples


def _worst(report: Report) -> list[dict[str, Any]]:
    """Collect what the page shows of each of the most suspicious samples."""
    entropy_map, names = report.result.entropy_map, report.result.split.names()
    paths, images = report.paths, report.images
    return [
        {
            "index": index,
            "name": report.class_names[int(report.labels[index])],
            "clip_rank": float(entropy_map.clip_rank[index]),
            "suspicious_rank": float(entropy_map.suspicious_rank[index]),
            "clip_nll": float(entropy_map.clip_nll[index]),
            "suspicious_nll": float(entropy_map.suspicious_nll[index]),
            "split": names[index],
            "path": (paths[index] if paths else None) or "",
            "picture": thumbnail(images, index) if images is not None else None,
        }
        for index in most_suspicious(entropy_map)
    ]


def _figure_tables(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arrange figures in tables: columns ("before", "after", ...) with common figures share one."""
    flat = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    columns = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    if flat:
        columns = {"": flat, **columns}
    tables: list[dict[str, Mapping[str, Any]]] = []
    for title, column in columns.items():
        home = next((t for t in tables if any(set(column) & set(c) for c in t.values())), None)
        if home is None:
            tables.append(home := {})
        home[title] = column
    return [_figure_table(table) for table in tables]


def _figure_table(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = list(_FIGURES)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    names.sort(key=lambda name: known.index(name) if name in known else len(known))
    rows = [
        (
            _FIGURES.get(name, name.replace("_", " ")),
            [_shown(name, column.get(name)) for column in columns.values()],
        )
        for name in names
    ]
    return {"columns": list(columns), "rows": rows}


def _shown(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if name in _FIGURES and not name.startswith("auroc"):
        return f"{value:.1%}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
