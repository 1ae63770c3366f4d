"""Writing the whole report into a folder."""

from __future__ import annotations

from pathlib import Path

from cgd_wrap.files import write_json
from cgd_wrap.report.exports import write_entropy_score
from cgd_wrap.report.figure import plot_entropy_map
from cgd_wrap.report.html import write_page
from cgd_wrap.report.summary import summarise
from cgd_wrap.report.table import write_table
from cgd_wrap.report.value import Report


def write_report(report: Report, folder: str | Path) -> dict[str, Path]:
    """Write figure, page, table, summary and the score file of the authors' code into a folder.

    An older file is replaced as a whole, so that no file is ever half-written.

    Args:
        report: the report to write.
        folder: folder of the files; created if missing.

    Returns:
        The paths of the files: ``page``, ``figure``, ``samples``, ``summary``, ``entropy_score``.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    folder, result = Path(folder), report.result
    folder.mkdir(parents=True, exist_ok=True)
    figure = plot_entropy_map(
        result.entropy_map, result.split, folder / "entropy_map.png", poisoned=report.poisoned,
        sigma_clean=result.config.sigma_clean, sigma_triggered=result.config.sigma_triggered,
    )  # fmt: skip
    files = {
        "page": write_page(folder / "report.html", report, figure.read_bytes()),
        "figure": figure,
        "samples": write_table(folder / "samples.csv", report),
        "summary": folder / "summary.json",
        "entropy_score": write_entropy_score(
            folder / "entropy_score.json", result.entropy_map, report.poisoned
        ),
    }
    write_json(files["summary"], summarise(report))
    return files
