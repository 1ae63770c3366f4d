"""A tree as BackdoorBench leaves it after an attack, small and made by hand.

The layout is that of the genuine result that test_integration.py also reads where it is at hand.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from cgd_wrap.backdoorbench import (
    build_network,
    clean_images,
    poisoned_samples,
    read_attack_result,
    triggered_samples,
)
from cgd_wrap.backdoorbench.samples import BackdoorSamples

MODEL, NAME, TARGET = "squeezenet1_0", "badnet", 0
SIZES = (100, 40)  # training and test images
POISON_EVERY = 5
# What the defence adds to a result folder.
WRITTEN = {
    "AWC/clean_indices.json", "AWC/entropy_score.json", "AWC/logits.pt",
    "AWC/vslz_with_histograms_colored.png", "defense/cgd/defense_result.pt",
    "defense/cgd/cgd_df.csv", "defense/cgd/cgd_df_summary.csv",
    "defense/cgd/cgd_acc_like_metric_plots.png", "defense/cgd/cgd_loss_metric_plots.png",
}  # fmt: skip


def pixels_and_labels(part: int) -> tuple[np.ndarray, list[int]]:
    """Noise with a brightness per class, uint8 [N, 32, 32, 3]."""
    rng = np.random.default_rng(part)
    labels = [i % 10 for i in range(SIZES[part])]
    pixels = (
        rng.integers(0, 60, (SIZES[part], 32, 32, 3)) + 19 * np.array(labels)[:, None, None, None]
    )
    return pixels.astype(np.uint8), labels


def write_cifar10(folder: Path) -> None:
    """The python version of CIFAR-10, with fewer images."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for part, files in enumerate(([f"data_batch_{k}" for k in range(1, 6)], ["test_batch"])):
        pixels, labels = pixels_and_labels(part)
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        cuts = np.array_split(np.arange(len(labels)), len(files))
        for file, cut in zip(files, cuts, strict=True):
            batch = {"data": rows[cut], "labels": [labels[i] for i in cut]}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))


def stored_state(folder: Path, name: str, part: int, written_root: str) -> dict[str, Any]:
    """State of bd_train or bd_test, its images written to disk."""
    pixels, labels = pixels_and_labels(part)
    indicator, entries = np.zeros(len(labels)), {}
    for index, label in enumerate(labels):
        poisoned = label != TARGET if part else index % POISON_EVERY == 1
        if not poisoned:
            continue
        indicator[index] = 1
        image = pixels[index].copy()
        image[-6:, -6:] = 255
        path = folder / name / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        entries[np.int64(index)] = {
            "path": f"{written_root}/{name}/{label}/{index}.png",
            "other_info": [TARGET, label],
        }
    kept = np.flatnonzero(indicator) if part else np.arange(len(labels))
    save = f"{written_root}/{name}"
    container = {"save_folder_path": save, "save_file_format": ".png", "data_dict": entries}
    return {
        "bd_data_container": container, "getitem_all": True, "getitem_all_switch": False,
        "original_index_array": kept, "poison_indicator": indicator, "save_folder_path": save,
    }  # fmt: skip


def attack_state(folder: Path, written_root: str = f"./record/{NAME}") -> dict[str, Any]:
    """What goes into attack_result.pt."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        weights = build_network(MODEL, 10).state_dict()
    return {
        "model_name": MODEL, "num_classes": 10, "model": weights,
        "data_path": "./data/cifar10", "img_size": (32, 32, 3), "clean_data": "cifar10",
        "bd_train": stored_state(folder, "bd_train_dataset", 0, written_root),
        "bd_test": stored_state(folder, "bd_test_dataset", 1, written_root),
    }  # fmt: skip


def write_tree(root: Path, **written: str) -> Path:
    """The whole tree; its result folder comes back."""
    write_cifar10(root / "data" / "cifar10")
    folder = root / "record" / NAME
    folder.mkdir(parents=True)
    torch.save(attack_state(folder, **written), folder / "attack_result.pt")
    return folder


def change(folder: Path, **fields: Any) -> None:
    """Overwrite top fields of attack_result.pt."""
    state = attack_state(folder)
    torch.save(state | fields, folder / "attack_result.pt")


def open_sets(folder: Path) -> tuple[BackdoorSamples, BackdoorSamples]:
    """Training samples as the attack left them, and test samples with the trigger."""
    result = read_attack_result(folder)
    train, test = clean_images(result.data_set, result.data_folder())
    return poisoned_samples(result, train), triggered_samples(result, test)


def loaded(folder: Path) -> dict[str, SimpleNamespace]:
    """What load_attack_result returns, as far as the clean split is concerned."""
    result = read_attack_result(folder)
    train, _ = clean_images(result.data_set, result.data_folder())
    poisoned = poisoned_samples(result, train)
    return {
        "clean_train": SimpleNamespace(wrapped_dataset=train, wrap_img_transform="kept"),
        "bd_train": SimpleNamespace(wrapped_dataset=poisoned),
    }


def write_split(folder: Path, indices: list[int]) -> None:
    """The clean split that the defence leaves in a result folder."""
    (folder / "AWC").mkdir()
    (folder / "AWC" / "clean_indices.json").write_text(json.dumps(indices))
