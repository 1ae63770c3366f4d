"""All samples as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.files import write_atomically
from cgd_wrap.functional import Split
from cgd_wrap.report.escaping import csv_text
from cgd_wrap.split.entropy_map import EntropyMap

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


def write_table(
    path: str | Path,
    entropy_map: EntropyMap,
    split: Split,
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    paths: Sequence[str | None] | None = None,
    bad: Mapping[int, Sequence[str | None]] | None = None,
) -> Path:
    """One row a sample, in the dataset's order; NLLs in nats, ranks in (0, 1], UTF-8.

    Args:
        path: the file.
        entropy_map: scores and ranks; ``nan`` for an unreadable sample.
        split: which split each sample is in.
        labels: the given labels.
        class_names: their names.
        paths: the samples' files, where they are known.
        bad: samples that can't be used: index -> [reason, message, path].
    """
    path = Path(path)
    names = [csv_text(name) for name in class_names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = zip(
        labels.tolist(),
        entropy_map.clip_nll.tolist(),
        entropy_map.suspicious_nll.tolist(),
        entropy_map.clip_rank.tolist(),
        entropy_map.suspicious_rank.tolist(),
        split.names(),
        paths or [None] * len(entropy_map),
        strict=True,
    )
    for index, (label, clip, suspicious, clip_rank, rank, where, file) in enumerate(columns):
        name = names[label] if 0 <= label < len(names) else ""
        scores = (f"{clip:.9g}", f"{suspicious:.9g}", repr(clip_rank), repr(rank))
        reason = (bad or {}).get(index, [""])[0]
        writer.writerow((index, label, name, *scores, where, csv_text(file or ""), reason))
    write_atomically(path, text.getvalue().encode())
    return path
