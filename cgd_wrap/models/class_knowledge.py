"""Measuring whether a model already knows the classes, before the defence trains it.

A model that knows the classes is repaired, and needs stronger settings than a model that is trained
from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from cgd_wrap.errors import BadSampleError
from cgd_wrap.functional import share_by_class
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating
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
    fallback: Callable[[], Any],
    shape: tuple[int, int, int],
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    runtime: Runtime,
    *,
    seed: int,
    progress: bool = True,
) -> float:
    """Measure :func:`class_knowledge` of a model on some clean samples; the model stays as it is.

    Args:
        model: image batch -> logits.
        view: the images as the model is evaluated on them, ``[i] -> tensor``.
        fallback: makes another view, for images of which ``view`` gives no float tensor of
            ``shape``, since only the user's collate function makes tensors. Called only if needed.
        shape: shape of an image, [C, H, W].
        labels: given labels.
        clean: samples whose labels are to be trusted.
        runtime: device and precision.
        seed: seed of the choice of samples.
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
    made = cache(fallback)

    def image_of(index: int) -> Float[Tensor, "c h w"]:
        with suppress(TypeError, BadSampleError):  # no tensor, or a sample that can't be read
            image: Tensor = view[index]
            if image.is_floating_point() and image.shape == shape:
                return image
        other: Tensor = made()[index]
        return other

    predictions = []
    bar = tqdm(indices.split(BATCH), desc="the model's skill", unit="batch", disable=not progress)
    with kept_rng(), evaluating(model), torch.no_grad():
        for rows in bar:
            images = torch.stack([image_of(index) for index in rows.tolist()])
            with runtime.autocast():
                logits = logits_of(model(images.to(runtime.device, first.dtype)))
            predictions.append(logits.float().argmax(dim=1).cpu())
    return class_knowledge(torch.cat(predictions), labels[indices])
