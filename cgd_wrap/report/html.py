"""One self-contained page to read."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.errors import MissingExtraError
from cgd_wrap.files import write_atomically
from cgd_wrap.functional import Split
from cgd_wrap.report.escaping import printable
from cgd_wrap.report.summary import ClassRow, most_suspicious
from cgd_wrap.report.thumbnails import thumbnail
from cgd_wrap.split.entropy_map import EntropyMap

_FIGURES = {
    "clean_accuracy": "clean accuracy (CA)",
    "attack_success_rate": "attack success rate (ASR)",
    "natural_rate": "natural rate: the floor of ASR",
    "robust_accuracy": "robust accuracy (RA)",
    "poison_left_in_clean": "poison left in the clean split",
    "poison_in_triggered": "poison found by the triggered split",
    "precision": "precision of the triggered split",
    "recall": "recall of the triggered split",
    "auroc_clip": "area under the ROC curve, CLIP rank",
    "auroc_suspicious": "area under the ROC curve, suspicious rank",
}


def write_page(
    path: str | Path,
    *,
    title: str,
    entropy_map: EntropyMap,
    split: Split,
    rows: Sequence[ClassRow],
    labels: Int[Tensor, "n"],
    picture: bytes,
    thresholds: Mapping[str, float],
    poison_rate: float = 0.0,
    auto: bool = False,
    paths: Sequence[str | None] | None = None,
    images: Any = None,
    bad: Mapping[int, Sequence[str | None]] | None = None,
    figures: Mapping[str, Any] | None = None,
    stage_seconds: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    teachers: Sequence[str] = (),
) -> Path:
    """Write the report as HTML: no script, nothing loaded from elsewhere, all text escaped.

    Args:
        path: the file.
        title: heading.
        entropy_map: of the training set.
        split: of the same set.
        rows: see :func:`cgd_wrap.report.summary.class_rows`.
        labels: the given labels.
        picture: the entropy map as PNG.
        thresholds: ``clean`` and ``triggered``; ``slow``, ``corner``, ``poison`` where used.
        poison_rate: estimated share of all samples that are poisoned, in [0, 1].
        auto: whether the poison's probability decided, as under ``sigma="auto"``.
        paths: the samples' files, where they are known.
        images: raw images by index, for thumbnails of the most suspicious samples.
        bad: samples that can't be used: index -> [reason, message, path].
        figures: measured figures by name, or by name within "before", "after" and the like.
        stage_seconds: wall-clock seconds by stage.
        warnings: what seems wrong with CLIP, a message each.
        teachers: how far the CLIPs agree, a sentence each.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("report", "jinja2") from error

    template = resources.files("cgd_wrap.report").joinpath("page.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    # Class names and paths are foreign text: every value passes through the escaping.
    environment.finalize = lambda value: printable(value) if type(value) is str else value
    text = environment.from_string(template).render(
        title=title,
        counts=split.counts(),
        samples=len(split),
        rows=sorted(rows, key=lambda row: -row.lift),
        suspected=[row for row in rows if row.suspected],
        poison_rate=poison_rate,
        auto=(DEFAULT.sure_of_poison, DEFAULT.unlikely_poison) if auto else None,
        figure="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        thresholds=thresholds,
        worst=_worst(entropy_map, split, rows, labels, paths, images),
        bad=sorted((bad or {}).items())[:100],
        has_paths=any(paths or ()),
        has_images=images is not None,
        figures=_figure_tables(figures or {}),
        stage_seconds=stage_seconds or {},
        warnings=warnings,
        teachers=teachers,
    )
    path = Path(path)
    write_atomically(path, text.encode("utf-8"))
    return path


def _worst(
    entropy_map: EntropyMap,
    split: Split,
    rows: Sequence[ClassRow],
    labels: Int[Tensor, "n"],
    paths: Sequence[str | None] | None,
    images: Any,
) -> list[dict[str, Any]]:
    names = split.names()
    return [
        {
            "index": index,
            "name": rows[int(labels[index])].name,
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
    """One table for all columns ("before", "after", ...) that share a figure."""
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
    if "poison_in_triggered" in names and "recall" in names:
        names.remove("recall")  # the same figure by another name
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
