"""Writing the files of the reference code's first step into ``record/<name>/AWC``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cgd_wrap.backdoorbench.samples import BackdoorSamples
from cgd_wrap.backdoorbench.writing import write_tensors
from cgd_wrap.guard import CGDGuard

FOLDER = "AWC"
CLEAN_INDICES = "clean_indices.json"


def write_awc(folder: Path, guard: CGDGuard, samples: BackdoorSamples) -> dict[str, Path]:
    """Write a scan's split, entropy map, logits and figure as the reference code does.

    The files are ``clean_indices.json`` (balanced, with repeats), ``entropy_score.json`` (with the
    truth: which samples are poisoned), ``logits.pt`` (plain tensors; without the reference's image
    features) and ``vslz_with_histograms_colored.png``. Existing files are replaced. The truth goes
    into these files and nowhere else.

    Args:
        folder: folder to write into; made if it is missing.
        guard: the guard, after its scan.
        samples: the poisoned training set that the guard scanned.
    """
    from cgd_wrap.report import plot_entropy_map, write_entropy_score

    files = guard.export(folder)
    config, poisoned = guard.config, samples.is_poisoned
    write_entropy_score(files["entropy_score"], guard.entropy_map, poisoned)
    clip, suspicious = (
        torch.cat([values for _, values, _ in stored.units()]) for stored in guard.logits
    )
    logits: dict[str, Any] = {
        "logits_kfold": suspicious,
        "logits_clip": clip,
        "poisoned_indices": poisoned.nonzero().squeeze(1),
        "poison_labels": guard.targets,
        "clean_labels": torch.tensor(samples.original_targets),
        "num_classes": len(guard.class_names),
    }
    if bool(samples.is_noise.any()):
        logits["noise_indices"] = samples.is_noise.nonzero().squeeze(1)
    write_tensors(folder / "logits.pt", logits)
    figure = plot_entropy_map(
        guard.entropy_map, guard.split, folder / "vslz_with_histograms_colored.png",
        poisoned=poisoned, sigma_clean=config.sigma_clean,
        sigma_triggered=config.sigma_triggered,
    )  # fmt: skip
    return {**files, "logits_pt": folder / "logits.pt", "figure": figure}
