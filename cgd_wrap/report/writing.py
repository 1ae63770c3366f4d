"""The whole report in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.files import write_json
from cgd_wrap.functional import Split
from cgd_wrap.metrics import detection_figures
from cgd_wrap.report.exports import write_entropy_score
from cgd_wrap.report.figure import plot_entropy_map
from cgd_wrap.report.html import write_page
from cgd_wrap.report.summary import class_rows, in_words, summarise
from cgd_wrap.report.table import write_table
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate, estimate_poison
from cgd_wrap.split.suspicion import Suspicion


def write_report(
    folder: str | Path,
    *,
    entropy_map: EntropyMap,
    split: Split,
    class_names: Sequence[str],
    labels: Int[Tensor, "n"],
    paths: Sequence[str | None] | None = None,
    images: Any = None,
    bad: Mapping[int, Sequence[str | None]] | None = None,
    poisoned: Bool[Tensor, "n"] | None = None,
    figures: Mapping[str, Any] | None = None,
    stage_seconds: Mapping[str, float] | None = None,
    title: str = "Which samples are poisoned?",
    sigma_clean: float = 0.2,
    sigma_triggered: float = 0.1,
    sigma_slow: float | None = None,
    corner_cut: float | None = None,
    poison_cut: float | None = None,
    auto: bool = False,
    estimate: PoisonEstimate | None = None,
    warnings: Sequence[str] = (),
    teachers: ClipAgreement | None = None,
) -> dict[str, Path]:
    """Write figure, page, tables and the reference's score file; each replaces an older one whole.

    Args:
        folder: made if it isn't there.
        entropy_map: of the training set.
        split: of the same set.
        class_names: C names.
        labels: the given labels, in [0, C).
        paths: the samples' files, where they are known.
        images: raw images by index, for thumbnails.
        bad: samples that can't be used: index -> [reason, message, path].
        poisoned: the truth, where it is known; adds the detection figures.
        figures: measured figures by name, such as ``BackdoorFigures.as_dict()``, or several such
            dicts by column: ``{"before": ..., "after": ...}``.
        stage_seconds: wall-clock seconds by stage.
        title: heading of the page.
        sigma_clean: threshold that the clean split was made with.
        sigma_triggered: threshold that the triggered split was made with.
        sigma_slow: rank from which mixed samples counted as clean, if there was one.
        corner_cut: corner score by which the split was revised, if it was.
        poison_cut: probability of being poisoned by which it was revised, if it was.
        auto: whether that probability also decided what is triggered (``sigma="auto"``).
        estimate: of the poison. Default: made from map and split.
        warnings: what seems wrong with CLIP, a message each.
        teachers: how far the CLIPs agree with the labels, and with each other.

    Returns:
        The files: ``page``, ``figure``, ``samples``, ``summary``, ``entropy_score``.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        ValueError: the arguments are of different length, or a label is no class.
    """
    _check_lengths(len(entropy_map), split=split, labels=labels, paths=paths, poisoned=poisoned)
    _check_labels(labels, len(class_names))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    thresholds = {"clean": sigma_clean, "triggered": sigma_triggered}
    optional = {"slow": sigma_slow, "corner": corner_cut, "poison": poison_cut}
    thresholds |= {name: value for name, value in optional.items() if value is not None}
    if estimate is None:
        ranks = entropy_map.clip_rank, entropy_map.suspicious_rank
        suspicion = Suspicion.of(labels, *ranks, split.triggered)
        estimate = estimate_poison(labels, suspicion, (ranks[0] + ranks[1]).isfinite())
    if poisoned is not None:
        found = detection_figures(entropy_map, split, poisoned).as_dict()
        figures = {**(figures or {}), "detection": found}
    rows = class_rows(split, labels, class_names, estimate)
    figure = plot_entropy_map(
        entropy_map,
        split,
        folder / "entropy_map.png",
        poisoned=poisoned,
        sigma_clean=sigma_clean,
        sigma_triggered=sigma_triggered,
    )
    page = write_page(
        folder / "report.html",
        title=title,
        entropy_map=entropy_map,
        split=split,
        rows=rows,
        labels=labels,
        picture=figure.read_bytes(),
        thresholds=thresholds,
        poison_rate=estimate.rate,
        auto=auto,
        paths=paths,
        images=images,
        bad=bad,
        figures=figures,
        stage_seconds=stage_seconds,
        warnings=warnings,
        teachers=in_words(teachers, class_names),
    )
    table = folder / "samples.csv"
    write_table(table, entropy_map, split, labels, class_names, paths, bad)
    summary = folder / "summary.json"
    more: dict[str, Any] = {
        "figures": figures, "stage_seconds": stage_seconds, "bad": bad,
        "warnings": warnings, "teachers": teachers,
    }  # fmt: skip
    write_json(
        summary, summarise(entropy_map, split, rows, estimate, thresholds=thresholds, **more)
    )
    score = write_entropy_score(folder / "entropy_score.json", entropy_map, poisoned)
    return {
        "page": page, "figure": figure, "samples": table, "summary": summary,
        "entropy_score": score,
    }  # fmt: skip


def _check_lengths(expected: int, **columns: Any) -> None:
    wrong = {
        name: len(column)
        for name, column in columns.items()
        if column is not None and len(column) != expected
    }
    if wrong:
        found = ", ".join(f"{name} has {length}" for name, length in wrong.items())
        raise ValueError(
            f"the entropy map has {expected} samples, but {found}: pass columns of one dataset"
        )


def _check_labels(labels: Int[Tensor, "n"], classes: int) -> None:
    outside = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(outside):
        raise ValueError(
            f"{len(outside)} labels are no class of {classes} (first: sample {int(outside[0])} "
            f"with {int(labels[outside[0]])}): pass a name for every class"
        )
