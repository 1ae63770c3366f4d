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
from cgd_wrap.data.fingerprint import dataset_fingerprint, sample_fingerprint
from cgd_wrap.errors import BadSampleError
from cgd_wrap.files import (
    check_fingerprint,
    differing_fields,
    read_json,
    write_atomically,
    write_json,
)
from cgd_wrap.models.inputs import fitted
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating
from cgd_wrap.models.weights import fresh_copy, hash_weights
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.stored_logits import StoredLogits, bad_samples, stored_logits
from cgd_wrap.scan.suspicious_training import train_suspicious


def trained_suspicious_pass(
    model: nn.Module,
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
        view: the images for the copies, ``[i] -> image tensor``.
        view_description: JSON values that describe the view, for the fingerprint.
        labels: given labels.
        indices: samples to train on: all that can be read.
        options: cache, device and configuration.
    """
    config, runtime, folder = options.config, options.runtime, options.folder / "suspicious"
    settings = {k: v for k, v in config.as_dict().items() if k.startswith("suspicious_")}
    training = json.loads(
        json.dumps({**options.dataset, **view_description, **settings, "seed": config.seed,
                    "architecture": _architecture(model)})
    )  # fmt: skip
    _claim_training(folder, training, options)
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
            run=run, num_workers=options.workers.count, progress=options.progress,
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
    model: nn.Module, view: Dataset[Tensor], rows: int, options: PassOptions
) -> StoredLogits:
    """Score every sample by a suspicious model that the user gave, as it is.

    Args:
        model: trained on the same data; its training modes are put back.
        view: the user's images as the model is evaluated on them, ``[i] -> image tensor``.
        rows: length of the dataset.
        options: cache, device and configuration.

    Raises:
        DatasetError: an image of the view differs each time; nothing is left in the cache.
    """
    known = options.unreadable
    if options.begins("suspicious"):
        check_deterministic(view, workers=options.workers, known=known)
    fingerprint = {
        "architecture": _architecture(model),
        "weights": hash_weights(model),
        "eval_dataset_view": sample_fingerprint(view, workers=options.workers, known=known),
    }
    store = options.open_store("suspicious", rows, fingerprint)
    return _model_pass(lambda: [model], view, store, options)


def own_inputs_pass(
    view: Dataset[Tensor], rows: int, options: PassOptions
) -> tuple[str, dict[int, BadSampleError]]:
    """Read the data set's own tensors once, before fresh copies of the model are trained on them.

    Nothing but the mean of each image is kept. The pass finds the images that can't be read or
    whose values aren't finite, which the pass of CLIP over other images didn't meet.

    Args:
        view: the user's images as the model is evaluated on them, ``[i] -> image tensor``.
        rows: length of the dataset.
        options: cache, device and configuration.

    Returns:
        A hash of some images, and the unusable samples.

    Raises:
        DatasetError: an image of the view differs each time; nothing is left in the cache.
    """
    known = options.unreadable
    if options.begins("inputs"):
        check_deterministic(view, workers=options.workers, known=known)
    hashed = sample_fingerprint(view, workers=options.workers, known=known)
    store = options.open_store("inputs", rows, {"eval_dataset_view": hashed})

    def mean(images: Tensor, *, full_precision: bool) -> Tensor:
        return images.float().flatten(1).mean(dim=1, keepdim=True)

    options.scan(view, mean, store, title="the model's inputs", features=1)
    return hashed, bad_samples(StoredLogits(store, stored_logits))


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
                each.append(logits_of(model(fitted(images, model))).float())
        return torch.stack(each).mean(dim=0)

    options.scan(view, score, store, title="suspicious model")
    return StoredLogits(store, stored_logits)


def _claim_training(folder: Path, training: dict[str, Any], options: PassOptions) -> None:
    """Check that stored weights belong to this training, or delete them if overwriting."""
    path = folder / "training.json"
    found = read_json(path)
    if found is not None and not options.overwrite:
        check_fingerprint(folder, found, training)
    if found is not None and not differing_fields(found, training):
        return
    if options.runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("run-*.safetensors"):
            old.unlink()
        write_json(path, training)


def _architecture(model: nn.Module) -> str:
    """Hash a model's class, and the names and shapes of its parameters."""
    shapes = [(name, tuple(t.shape)) for name, t in model.state_dict().items()]
    return dataset_fingerprint([type(model).__qualname__, shapes])


def _save_model(model: nn.Module, path: Path) -> None:
    temporary = path.with_suffix(".partial")
    save_model(model, str(temporary))  # handles tied weights, which save() refuses
    payload = temporary.read_bytes()
    temporary.unlink()
    write_atomically(path, payload)
