"""Writing a CSV table of all samples."""

from __future__ import annotations

import csv
import io
from itertools import repeat
from pathlib import Path

from cgd_wrap.escaping import csv_text
from cgd_wrap.files import write_atomically
from cgd_wrap.report.value import Report

COLUMNS = (
    "index",
    "label",
    "class_name",
    "clip_nll",
    "suspicious_nll",
    "clip_rank",
    "suspicious_rank",
    "split",
    "path",
    "reason",
)


def write_table(path: str | Path, report: Report) -> Path:
    """Write a CSV file with a row per sample, in the dataset's order.

    NLLs are in nats, ranks in (0, 1]; of an unreadable sample both are ``nan``. The file is UTF-8.

    Args:
        path: path of the file.
        report: the report whose samples are written.
    """
    path, result = Path(path), report.result
    entropy_map = result.entropy_map
    names = [csv_text(name) for name in report.class_names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    labels, size = report.labels.tolist(), len(entropy_map)
    columns = (
        range(size),
        labels,
        map(names.__getitem__, labels),
        map("{:.9g}".format, entropy_map.clip_nll.tolist()),
        map("{:.9g}".format, entropy_map.suspicious_nll.tolist()),
        entropy_map.clip_rank.tolist(),  # the csv module writes all digits of a float
        entropy_map.suspicious_rank.tolist(),
        result.split.names(),
        (csv_text(path or "") for path in report.paths) if report.paths else repeat("", size),
        (result.bad[i][0] if i in result.bad else "" for i in range(size)),
    )
    writer.writerows(zip(*columns, strict=True))
    write_atomically(path, text.getvalue().encode())
    return path
