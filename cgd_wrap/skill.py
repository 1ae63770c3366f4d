"""Whether a model knows the classes yet: one that is repaired needs more than one that starts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cgd_wrap.prediction import predict_with_labels
from cgd_wrap.suspicious import seeded
from cgd_wrap.verdicts import share_by_class
from cgd_wrap.views import LabelledImages

SAMPLES = 512  # at most; enough to tell chance from learned
LEAST_SKILL = 0.15  # of a trained model


def skill(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """Balanced accuracy above chance: 0 for a constant guess, 1 where all are right.

    The mean recall of the classes that occur, moved and scaled by what a guess would reach.
    """
    recall = share_by_class(predictions == labels, labels)
    recall = recall[~recall.isnan()]
    chance = 1 / max(2, len(recall))
    return (float(recall.mean()) - chance) / (1 - chance)


def skill_on(
    model: nn.Module,
    view: Any,
    fallback: Any,
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    *,
    seed: int,
    num_workers: int = 0,
) -> float:
    """:func:`skill` of a model on some of the clean samples.

    Args:
        model: image batch -> logits.
        view: the images as the model is trained on them, ``[i] -> tensor``.
        fallback: of the same size each, where the view's can't be stacked into batches.
        labels: given labels.
        clean: samples whose labels are to be trusted.
        seed: of the choice of samples, and of a random view.
        num_workers: of the loader.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = clean.nonzero().squeeze(1)
    indices = indices[torch.randperm(len(indices), generator=generator)[:SAMPLES]]

    def measured(images: Any) -> float:
        pairs = Subset(LabelledImages(images, labels), indices.tolist())
        loader = DataLoader(pairs, 128, num_workers=num_workers, generator=torch.Generator())
        with seeded(seed):
            return skill(*predict_with_labels(model, loader))

    try:
        return measured(view)
    except (TypeError, RuntimeError):  # no tensors, or of several sizes: the user's collate helps
        return measured(fallback)
