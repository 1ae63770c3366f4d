"""Reporting what a scan found: a figure, an HTML page, CSV and JSON.

The extra ``report`` must be installed to write a report, not to import this package.
"""

from __future__ import annotations

from cgd_wrap.report.exports import (
    export_for_reference,
    write_clean_indices,
    write_entropy_score,
    write_logits,
)
from cgd_wrap.report.figure import plot_entropy_map
from cgd_wrap.report.table import write_table
from cgd_wrap.report.value import Report
from cgd_wrap.report.writing import write_report

__all__ = [
    "Report",
    "export_for_reference",
    "plot_entropy_map",
    "write_clean_indices",
    "write_entropy_score",
    "write_logits",
    "write_report",
    "write_table",
]
