"""The pass of the suspicious model over the images: trained briefly here, or given by the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd_wrap.data import check_deterministic
from cgd_wrap.data.identity import merged
from cgd_wrap.data.pixel_hashes import sample_fingerprint
from cgd_wrap.errors import BadSampleError, StoredFileError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import agreed, check_fingerprint, content_hash, differing_fields
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating, fitted
from cgd_wrap.models.weights import fresh_copy, hash_tensors, hash_weights
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.stored_logits import StoredLogits, bad_samples, stored_logits
from cgd_wrap.scan.suspicious_training import train_suspicious
from cgd_wrap.sealed import read_sealed, read_sealed_json, write_sealed, write_sealed_json

logger = escaped_logger(__name__)


def trained_suspicious_pass(
    model: nn.Module,
    architecture: Mapping[str, Any],
    view: Dataset[Tensor],
    view_description: Mapping[str, Any],
    labels: Int[Tensor, "n"],
    indices: Int[Tensor, "m"],
    options: PassOptions,
    *,
    prepare: Callable[[], None] | None = None,
) -> StoredLogits:
    """Train fresh copies of the model briefly, then score every sample by their mean logits.

    Trained weights are kept in the cache, run by run; a finished pass needs no model at all. A run
    whose file is damaged is trained again; if its weights then differ, the pass is done again.

    Args:
        model: gives the architecture; not changed.
        architecture: what the model computes, JSON values for the fingerprint, from
            :func:`~cgd_wrap.models.architecture.describe_model`.
        view: the images for the copies, ``[i] -> image tensor``.
        view_description: JSON values that describe the view, for the fingerprint.
        labels: given labels.
        indices: samples to train on: all that can be read.
        options: cache, device and configuration.
        prepare: called by all processes before the view is read, if it is read at all.
    """
    config, runtime, folder = options.config, options.runtime, options.folder / "suspicious"
    told = ("suspicious_network", "suspicious_side")  # by architecture and input
    settings = {
        k: v for k, v in config.as_dict().items() if k.startswith("suspicious_") and k not in told
    }
    training = json.loads(
        json.dumps({**merged(options.dataset, architecture), **view_description, **settings,
                    "seed": config.seed})
    )  # fmt: skip
    training = _claim_training(folder, training, options)
    runs = _StoredRuns(folder, content_hash(json.dumps(training, sort_keys=True).encode()))
    numbers = range(config.suspicious_runs)

    def open_store() -> UnitStore:
        weights = [hash_tensors(runs.trained(run)) for run in numbers]
        return options.open_store(
            "suspicious", len(labels), {**training, "weights": weights}, derived=["weights"]
        )

    # All processes must agree on what is missing, since they train together.
    missing = runs.missing(numbers) if runtime.is_main else []
    store = open_store() if runtime.is_main and not missing else None
    done = store is not None and store.is_complete()
    missing, done = json.loads(runtime.share(json.dumps([missing, done])))
    if not done and prepare is not None:
        prepare()
    for run in missing:
        fresh = fresh_copy(model, seed=config.seed + run)
        trained = train_suspicious(
            fresh, view, labels, indices, config, runtime,
            run=run, num_workers=options.workers.count, progress=options.progress,
        )  # fmt: skip
        if runtime.is_main:
            runs.write(run, trained)
        runtime.barrier()

    def load() -> list[nn.Module]:
        copies = [fresh_copy(model, seed=0) for _ in numbers]
        for run, copy in zip(numbers, copies, strict=True):
            copy.load_state_dict(runs.trained(run))
        return copies

    return _model_pass(load, view, open_store() if store is None else store, options)


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
    known = options.unreadable
    if options.begins("suspicious"):
        check_deterministic(view, workers=options.workers, known=known)
    fingerprint = {
        **architecture,
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


@dataclass(frozen=True)
class _StoredRuns:
    """The weights of trained suspicious models, a sealed file for each run of the training.

    Attributes:
        folder: folder of the files.
        training: hash of all that the training depends on; weights of another one don't count.
    """

    folder: Path
    training: str

    def write(self, run: int, model: nn.Module) -> None:
        """Store the weights; weights that are tied are stored under each of their names."""
        write_sealed(self._file(run), model.state_dict(), self._place(run))

    def read(self, run: int) -> dict[str, Tensor] | None:
        """Read the weights of a run; None if its file is missing, damaged or another's."""
        found = read_sealed(self._file(run), self._place(run))
        return None if found is None else found[0]

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """List which of some runs are missing or damaged."""
        missing = [run for run in numbers if self.read(run) is None]
        for run in missing:
            if self._file(run).exists():
                logger.warning("%s is damaged and is trained again.", self._file(run))
        return missing

    def trained(self, run: int) -> dict[str, Tensor]:
        """Read the weights of a run that must be there.

        Raises:
            StoredFileError: the file has been damaged or removed.
        """
        weights = self.read(run)
        if weights is None:
            raise StoredFileError(f"{self._file(run)} was damaged during the scan; scan again")
        return weights

    def _file(self, run: int) -> Path:
        return self.folder / f"run-{run}.safetensors"

    def _place(self, run: int) -> dict[str, Any]:
        return {"kind": "suspicious weights", "training": self.training, "run": run}


def _claim_training(folder: Path, training: dict[str, Any], options: PassOptions) -> dict[str, Any]:
    """Check that stored weights belong to this training, or delete them if overwriting.

    Returns:
        The fingerprint of the training, with volatile parts as they are stored.
    """
    path, place = folder / "training.json", {"kind": "suspicious training"}
    found = read_sealed_json(path, place)
    asked = agreed(found or {}, training)
    if found is not None and not options.overwrite:
        check_fingerprint(folder, found, asked)
    if found is not None and not differing_fields(found, asked):
        return found
    if options.runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("run-*.safetensors") if found else ():
            old.unlink()
        write_sealed_json(path, training, place)
    return training
