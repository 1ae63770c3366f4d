"""Measuring whether a model already knows the classes, before the defence trains it.

A model that knows the classes is repaired, and needs stronger settings than a model that is trained
from scratch.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from cgd_wrap.data.failures import memory_explained
from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.workers import HERE, Sample, Workers
from cgd_wrap.errors import BadSampleError, NoImageError
from cgd_wrap.functional import share_by_class
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating, fitted
from cgd_wrap.models.weights import copy_of
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import kept_rng

SAMPLES, BATCH = 512, 32  # 512 samples are enough to tell knowledge from chance


def class_knowledge(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """Balanced accuracy on a scale from chance to perfect: 0 for a constant guess, 1 for all right.

    ``(r - c) / (1 - c)``: r is the mean recall of the classes that occur, and c the recall by
    chance, 1 over the number of these classes (at least 2).
    """
    recall = share_by_class(predictions == labels, labels)
    recall = recall[~recall.isnan()]
    chance = 1 / max(2, len(recall))
    return (float(recall.mean()) - chance) / (1 - chance)


def measured_class_knowledge(
    model: nn.Module,
    view: Any,
    fallback: Any,
    shape: tuple[int, int, int],
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    runtime: Runtime,
    *,
    seed: int,
    workers: Workers = HERE,
    progress: bool = True,
) -> float:
    """Measure :func:`class_knowledge` of a model on some clean samples; the model stays as it is.

    Args:
        model: image batch -> logits.
        view: the images as the model is evaluated on them, ``[i] -> tensor``.
        fallback: another view, for images of which ``view`` gives no float tensor of ``shape``,
            since only the user's collate function makes tensors. None where ``view`` is all that
            the model takes.
        shape: shape of an image, [C, H, W].
        labels: given labels.
        clean: samples whose labels are to be trusted.
        runtime: device and precision.
        seed: seed of the choice of samples.
        workers: the processes that read images.
        progress: draw a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = clean.nonzero().squeeze(1)
    indices = indices[torch.randperm(len(indices), generator=generator)[:SAMPLES]]
    if not len(indices):
        return 0.0
    first = next(model.parameters(), torch.zeros((), device=runtime.device))
    if first.device != runtime.device:
        model = copy_of(model).to(runtime.device)
    jobs = [part.tolist() for part in indices.split(BATCH)]
    found: dict[int, int] = {}  # prediction of each sample, by index
    bar = tqdm(total=len(jobs), desc="the model's skill", unit="batch", disable=not progress)

    def take(number: int, samples: list[Sample]) -> None:
        good = [(i, image) for i, image in samples if isinstance(image, Tensor)]
        if good:
            images = torch.stack([image for _, image in good]).to(runtime.device)
            with runtime.autocast():
                logits = logits_of(model(fitted(images, model)))
            classes = logits.float().argmax(dim=1).tolist()
            found.update(zip((i for i, _ in good), classes, strict=True))
        bar.update()

    images = view if fallback is None else _FirstThatFits(view, fallback, shape)
    where = f"as {BATCH} images were shown to the model, to find out what it knows"
    with bar, kept_rng(), evaluating(model), torch.no_grad(), memory_explained(where):
        SampleReader(images, workers).read(jobs, take, batch_size=BATCH)
    known = torch.tensor(sorted(found), dtype=torch.int64)
    predictions = torch.tensor([found[index] for index in known.tolist()], dtype=torch.int64)
    return class_knowledge(predictions, labels[known]) if len(known) else 0.0


class _FirstThatFits(Dataset[Tensor]):
    """The images of a view where they are float tensors of a shape, else those of another view."""

    def __init__(self, view: Any, fallback: Any, shape: tuple[int, int, int]) -> None:
        self.view, self.fallback, self.shape = view, fallback, shape

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> Float[Tensor, "c h w"]:
        with suppress(NoImageError, BadSampleError):
            image: Tensor = self.view[index]
            if image.is_floating_point() and image.shape == self.shape:
                return image
        other: Tensor = self.fallback[index]
        return other
