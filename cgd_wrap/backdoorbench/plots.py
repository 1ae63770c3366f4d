"""Two figures of a defence over its epochs: accuracies and losses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cgd_wrap.files import write_atomically

RATES = {
    "test_acc": "clean accuracy",
    "test_asr": "attack success rate",
    "test_ra": "robust accuracy",
    "natural_rate": "natural rate",
}
LOSSES = {
    "train_epoch_loss_avg_over_batch": "training, guarded",
    "clean_test_loss_avg_over_batch": "clean test",
    "ra_test_loss_avg_over_batch": "triggered test, original labels",
}


def plot_history(
    folder: Path, method: str, rows: Sequence[Mapping[str, float | None]]
) -> tuple[Path, Path]:
    """Draw ``<method>_acc_like_metric_plots.png`` and ``<method>_loss_metric_plots.png``.

    Args:
        folder: folder of the defence.
        method: name of the defence.
        rows: figures by column, of the backdoored model and after each epoch.
    """
    rates = _plot(folder / f"{method}_acc_like_metric_plots.png", rows, RATES, "share", (0, 1.02))
    losses = _plot(folder / f"{method}_loss_metric_plots.png", rows, LOSSES, "loss, nats", None)
    return rates, losses


def _plot(
    path: Path,
    rows: Sequence[Mapping[str, float | None]],
    names: Mapping[str, str],
    ylabel: str,
    limits: tuple[float, float] | None,
) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for column, label in names.items():
        values = [float("nan") if row.get(column) is None else row[column] for row in rows]
        axes.plot(range(len(rows)), values, marker="o", label=label)  # type: ignore[arg-type]
    axes.set(xlabel="epoch (0: before)", ylabel=ylabel, ylim=limits)
    axes.locator_params(axis="x", integer=True)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
    return path
