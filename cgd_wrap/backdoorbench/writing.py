"""Writing the files that BackdoorBench expects of a defence."""

from __future__ import annotations

import csv
import io
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgd_wrap.files import write_atomically

RESULT_NAME = "defense_result.pt"


def write_defense_result(
    folder: str | Path, model_name: str, num_classes: int, weights: Mapping[str, Tensor]
) -> Path:
    """Write ``defense_result.pt``, which BackdoorBench's ``load_attack_result`` reads.

    Args:
        folder: folder of the defence, such as ``record/<name>/defense/cgd``; made if it is missing.
        model_name: BackdoorBench's name of the network.
        num_classes: number of classes.
        weights: state dict of the repaired model; prefixes of DataParallel are taken off.

    Raises:
        ValueError: some values can't be read by BackdoorBench: empty tensors, or no tensors.
    """
    wrong = [
        name
        for name, value in weights.items()
        if not isinstance(value, Tensor) or value.numel() == 0
    ]
    if wrong or not weights:
        raise ValueError(
            f"BackdoorBench reads weights that are tensors with at least one value; got {wrong[:5]}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = OrderedDict(
        (name.removeprefix("module."), value.detach().cpu().contiguous().clone())
        for name, value in weights.items()
    )
    path = folder / RESULT_NAME
    write_tensors(path, {"model_name": model_name, "num_classes": num_classes, "model": plain})
    return path


def write_tensors(path: Path, values: Mapping[str, Any]) -> None:
    """Write tensors and plain values by ``torch.save``, as a whole file or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(values), buffer)
    write_atomically(path, buffer.getvalue())


def write_history(
    folder: Path, method: str, rows: Sequence[Mapping[str, float | None]]
) -> tuple[Path, Path]:
    """Write ``<method>_df.csv``, a row per epoch, and ``<method>_df_summary.csv``.

    Both have BackdoorBench's layout.

    Args:
        folder: folder of the defence.
        method: name of the defence.
        rows: figures by column; None leaves a cell empty.
    """
    columns = list(rows[0]) if rows else []
    table = [["", *columns]]
    table += [
        [str(number), *(_cell(row[name]) for name in columns)] for number, row in enumerate(rows)
    ]
    known = {name: [v for v in (r[name] for r in rows) if v is not None] for name in columns}
    finite = {name: [v for v in known[name] if not math.isnan(v)] for name in columns}
    last = [_cell(known[name][-1] if known[name] else None) for name in columns]
    best = [_cell(max(finite[name]) if finite[name] else None) for name in columns]
    bad = [str(len(finite[name]) < len(known[name])) for name in columns]
    summary = [["", *columns], ["last", *last], ["valid_max", *best], ["exist_nan_value", *bad]]
    paths = folder / f"{method}_df.csv", folder / f"{method}_df_summary.csv"
    for path, lines in zip(paths, (table, summary), strict=True):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_atomically(path, text.getvalue().encode())
    return paths


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return "nan_value" if math.isnan(value) else str(value)
