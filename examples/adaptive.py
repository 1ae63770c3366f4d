"""Choosing poison as an attacker who knows the defence would, for ``reproduce.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgd_wrap.clip import load_zero_shot
from cgd_wrap.clip.zero_shot import ZeroShot


@torch.no_grad()
def target_probability(
    clip: str | ZeroShot, pictures: Any, class_names: Sequence[str], target: int
) -> Tensor:
    """Probability that CLIP gives the target class for each image, float32 [N] in [0, 1].

    An attacker who poisons the images with the highest probability (:meth:`Attack.ranked_by`) has
    poison that CLIP contradicts least.

    Args:
        clip: a CLIP, as for :class:`CGDGuard`.
        pictures: (PIL image, label) tuples.
        class_names: names of the classes, in the order of the labels.
        target: number of the target class.
    """
    model = load_zero_shot(clip, class_names)
    found = []
    for start in range(0, len(pictures), 256):
        rows = range(start, min(start + 256, len(pictures)))
        images = torch.stack([model.preprocess(pictures[row][0]) for row in rows])
        found.append(model.logits(images).softmax(dim=1)[:, target])
    return torch.cat(found)
