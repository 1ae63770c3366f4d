"""The whole defence of a BackdoorBench result folder: scan, repair, measure, write the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cgd_wrap.backdoorbench.awc import FOLDER, write_awc
from cgd_wrap.backdoorbench.clean_data import clean_images
from cgd_wrap.backdoorbench.epochs import EpochRows
from cgd_wrap.backdoorbench.measuring import BenchData, BenchFigures
from cgd_wrap.backdoorbench.networks import build_network, with_weights
from cgd_wrap.backdoorbench.plots import plot_history
from cgd_wrap.backdoorbench.result import AttackResult, read_attack_result
from cgd_wrap.backdoorbench.samples import (
    BackdoorSamples,
    image_transform,
    poisoned_samples,
    triggered_samples,
)
from cgd_wrap.backdoorbench.writing import write_defense_result, write_history
from cgd_wrap.config import CGDConfig
from cgd_wrap.data.known_classes import known_classes
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import write_json
from cgd_wrap.guard import DEFAULT_CLIP, CGDGuard
from cgd_wrap.metrics import DetectionFigures, detection_figures
from cgd_wrap.randomness import seeded
from cgd_wrap.report.figure import require_matplotlib

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cgd_wrap.clip.several import Clips

logger = escaped_logger(__name__)

METHOD = "cgd"


@dataclass(frozen=True)
class Defence:
    """The outcome of defending an attack result of BackdoorBench.

    Attributes:
        before: figures of the backdoored model.
        after: figures of the repaired model.
        detection: how well the split found the poison.
        files: path of each file that was written, by name.
        guard: the guard itself, which holds the repaired model.
    """

    before: BenchFigures
    after: BenchFigures
    detection: DetectionFigures
    files: dict[str, Path]
    guard: CGDGuard = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON values, under BackdoorBench's names if BackdoorBench has such."""
        return {
            "before": self.before.as_row(),
            "after": self.after.as_row(),
            "split": self.guard.split.counts(),
            "detection": self.detection.as_dict(),
        }


def defend_folder(
    folder: str | Path,
    *,
    data_folder: str | Path | None = None,
    clip: Clips = DEFAULT_CLIP,
    config: CGDConfig | None = None,
    network: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
    checkpoint_folder: str | Path | None = None,
    save_every: int = 0,
    progress: bool = True,
) -> Defence:
    """Repair the model of ``record/<name>`` and write ``record/<name>/defense/cgd``.

    ``record/<name>/defense/cgd`` gets ``defense_result.pt``, ``cgd_df.csv``,
    ``cgd_df_summary.csv``, ``cgd_summary.json`` (figures before and after) and two plots;
    ``record/<name>/AWC`` gets the reference code's files of the split, and the scan. The test sets
    and the knowledge of which samples are poisoned serve to measure, and decide nothing.

    Args:
        folder: the result folder, ``record/<name>``.
        data_folder: folder of the clean data set. Default: where the attack found it.
        clip: as for :class:`~cgd_wrap.guard.CGDGuard`.
        config: every number of the defence. The default prompts are replaced by the data set's own.
        network: the model's architecture. Default: built by the model name in the result.
        class_names: as for :class:`~cgd_wrap.guard.CGDGuard`. Default: the data set's own.
        accelerator: device, precision, processes. Default: as the configuration says.
        num_workers: number of processes that read images.
        checkpoint_folder: folder of the checkpoints. Default: ``checkpoint`` in ``defense/cgd``.
        save_every: epochs between checkpoints; 0 is never.
        progress: draw progress bars.

    Raises:
        UnsafeFileError: a file would have to run code to be read.
        AttackResultError: the result is incomplete, or doesn't fit the data.
        MissingExtraError: the extra ``report`` is not installed.
        TrainingDivergedError: the repair has diverged; no result is written.
    """
    from accelerate import Accelerator

    require_matplotlib()  # fail now, not after the work
    result = read_attack_result(folder)
    config = _with_prompts(config or CGDConfig(), result.data_set)
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    if network is None:
        network = build_network(result.model_name, result.num_classes)
    model = with_weights(network, result.weights, result.model_name).to(accelerator.device)
    train, bench = _data(result, data_folder, num_workers)
    before = bench.measure(model)
    logger.info("Backdoored: %s.", in_words(before))
    augmented, steady = (
        train.with_transform(_transform(result, augment=augment)) for augment in (True, False)
    )
    guard = CGDGuard(
        model, augmented, class_names=class_names, clip=clip, config=config,
        accelerator=accelerator, eval_dataset_view=steady, num_workers=num_workers,
        cache_dir=result.folder / FOLDER / "scan", progress=progress,
    ).scan(overwrite=True)  # fmt: skip
    out = result.folder / "defense" / METHOD
    epochs = EpochRows(
        bench, Path(checkpoint_folder or out / "checkpoint") / f"{METHOD}_state_dict.pt",
        save_every if accelerator.is_main_process else 0,
    )  # fmt: skip
    files: dict[str, Path] = {}
    if accelerator.is_main_process:
        files |= write_awc(result.folder / FOLDER, guard, train)
    with seeded(config.seed):  # BackdoorBench's augmentation draws from the global stream
        guard.fit(on_epoch=epochs, resume=False)  # the rows of earlier epochs would be missing
    found = detection_figures(guard.entropy_map, guard.split, train.is_poisoned)
    defence = Defence(before, bench.measure(model), found, files, guard)
    logger.info("Repaired: %s.", in_words(defence.after))
    if accelerator.is_main_process:
        files |= _write(out, result, defence, epochs.rows)
    return defence


def _with_prompts(config: CGDConfig, data_set: str) -> CGDConfig:
    prompt = known_classes(data_set).prompt
    return config.replace(prompts=prompt) if config.prompts == CGDConfig().prompts else config


def _data(
    result: AttackResult, data_folder: str | Path | None, num_workers: int
) -> tuple[BackdoorSamples, BenchData]:
    """Read the poisoned training set, raw, and the test sets under the evaluation transform."""
    train, test = clean_images(result.data_set, result.data_folder(data_folder))
    steady = _transform(result, augment=False)
    bench = BenchData(
        clean=test.with_transform(steady),
        triggered=triggered_samples(result, test).with_transform(steady),
        num_workers=num_workers,
    )
    return poisoned_samples(result, train), bench


def _transform(result: AttackResult, *, augment: bool) -> Any:
    return image_transform(result.data_set, result.image_size, augment=augment)


def _write(
    out: Path, result: AttackResult, defence: Defence, rows: list[dict[str, float | None]]
) -> dict[str, Path]:
    weights = defence.guard.model.state_dict()
    path = write_defense_result(out, result.model_name, result.num_classes, weights)
    table, means = write_history(out, METHOD, rows)
    rates, losses = plot_history(out, METHOD, [defence.before.as_row(), *rows])
    summary = out / f"{METHOD}_summary.json"
    write_json(summary, defence.as_dict())
    return {
        "defense_result": path, "summary": summary, "history": table, "history_summary": means,
        "rates_plot": rates, "losses_plot": losses,
    }  # fmt: skip


def in_words(figures: BenchFigures) -> str:
    """A sentence part with a model's accuracies and attack success in %, for logs."""
    rates = figures.rates
    return (
        f"clean accuracy {100 * rates.clean_accuracy:.1f}%, attack success "
        f"{100 * rates.attack_success_rate:.1f}% (natural rate {100 * rates.natural_rate:.1f}%), "
        f"robust accuracy {100 * rates.robust_accuracy:.1f}%"
    )
