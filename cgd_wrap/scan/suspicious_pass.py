"""The pass of the suspicious model over the images: trained briefly here, or given by the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd_wrap.data import check_deterministic
from cgd_wrap.data.fingerprint import dataset_fingerprint
from cgd_wrap.data.identity import merged
from cgd_wrap.data.pixel_hashes import sample_fingerprint
from cgd_wrap.files import (
    agreed,
    check_fingerprint,
    differing_fields,
    read_json,
    write_atomically,
    write_json,
)
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating
from cgd_wrap.models.weights import fresh_copy, hash_weights
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.stored_logits import StoredLogits, stored_logits
from cgd_wrap.scan.suspicious_training import train_suspicious


def trained_suspicious_pass(
    model: nn.Module,
    architecture: Mapping[str, Any],
    view: Dataset[Tensor],
    view_description: Mapping[str, Any],
    labels: Int[Tensor, "n"],
    indices: Int[Tensor, "m"],
    options: PassOptions,
) -> StoredLogits:
    """Train fresh copies of the model briefly, then score every sample by their mean logits.

    Trained weights are kept in the cache, run by run; a finished pass needs no model at all.

    Args:
        model: gives the architecture; not changed.
        architecture: what the model computes, JSON values for the fingerprint, from
            :func:`~cgd_wrap.models.architecture.describe_model`.
        view: the images for the copies, ``[i] -> image tensor``.
        view_description: JSON values that describe the view, for the fingerprint.
        labels: given labels.
        indices: samples to train on: all that can be read.
        options: cache, device and configuration.
    """
    config, runtime, folder = options.config, options.runtime, options.folder / "suspicious"
    settings = {k: v for k, v in config.as_dict().items() if k.startswith("suspicious_")}
    training = json.loads(
        json.dumps({**merged(options.dataset, architecture), **view_description, **settings,
                    "seed": config.seed})
    )  # fmt: skip
    training = _claim_training(folder, training, options)
    paths = [folder / f"run-{run}.safetensors" for run in range(config.suspicious_runs)]
    runtime.barrier()  # all processes must agree on what is missing, since they train together
    missing = [path for path in paths if not path.is_file()]
    runtime.barrier()
    for run, path in enumerate(paths):
        if path not in missing:
            continue
        fresh = fresh_copy(model, seed=config.seed + run)
        trained = train_suspicious(
            fresh, view, labels, indices, config, runtime,
            run=run, num_workers=options.num_workers, progress=options.progress,
        )  # fmt: skip
        if runtime.is_main:
            _save_model(trained, path)
        runtime.barrier()

    def load() -> list[nn.Module]:
        copies = [fresh_copy(model, seed=0) for _ in paths]
        for copy, path in zip(copies, paths, strict=True):
            load_model(copy, path)
        return copies

    weights = [dataset_fingerprint(path.read_bytes()) for path in paths]
    store = options.open_store("suspicious", len(labels), {**training, "weights": weights})
    return _model_pass(load, view, store, options)


def given_suspicious_pass(
    model: nn.Module,
    architecture: Mapping[str, Any],
    view: Dataset[Tensor],
    rows: int,
    options: PassOptions,
) -> StoredLogits:
    """Score every sample by a suspicious model that the user gave, as it is.

    Args:
        model: trained on the same data; its training modes are put back.
        architecture: what the model computes, as for :func:`trained_suspicious_pass`.
        view: the user's images as the model is evaluated on them, ``[i] -> image tensor``.
        rows: length of the dataset.
        options: cache, device and configuration.

    Raises:
        DatasetError: an image of the view differs each time; nothing is left in the cache.
    """
    if options.begins("suspicious"):
        check_deterministic(view)
    fingerprint = {
        **architecture,
        "weights": hash_weights(model),
        "eval_dataset_view": sample_fingerprint(view),
    }
    store = options.open_store("suspicious", rows, fingerprint)
    return _model_pass(lambda: [model], view, store, options)


def _model_pass(
    load: Callable[[], list[nn.Module]], view: Any, store: UnitStore, options: PassOptions
) -> StoredLogits:
    models: list[nn.Module] = []

    def score(images: Tensor, *, full_precision: bool) -> Tensor:
        if not models:
            models.extend(model.to(options.runtime.device) for model in load())
        each = []
        for model in models:
            with evaluating(model), nullcontext() if full_precision else options.runtime.autocast():
                each.append(logits_of(model(images)).float())
        return torch.stack(each).mean(dim=0)

    options.scan(view, score, store, title="suspicious model")
    return StoredLogits(store, stored_logits)


def _claim_training(folder: Path, training: dict[str, Any], options: PassOptions) -> dict[str, Any]:
    """Check that stored weights belong to this training, or delete them if overwriting.

    Returns:
        The fingerprint of the training, with volatile parts as they are stored.
    """
    path = folder / "training.json"
    found = read_json(path)
    training = agreed(found or {}, training)
    if found is not None and not options.overwrite:
        check_fingerprint(folder, found, training)
    if found is not None and not differing_fields(found, training):
        return training
    if options.runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("run-*.safetensors"):
            old.unlink()
        write_json(path, training)
    return training


def _save_model(model: nn.Module, path: Path) -> None:
    temporary = path.with_suffix(".partial")
    save_model(model, str(temporary))  # handles tied weights, which save() refuses
    payload = temporary.read_bytes()
    temporary.unlink()
    write_atomically(path, payload)
