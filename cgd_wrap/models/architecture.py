"""Describing what a model computes, apart from its weights."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from cgd_wrap.data.fingerprint import parts
from cgd_wrap.data.identity import settled_parts
from cgd_wrap.models.inputs import InputKind
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.prediction import evaluating, fitted


def describe_model(model: nn.Module, inputs: InputKind) -> dict[str, Any]:
    """Describe a model by its submodules, their settings and code, and the shapes of its weights.

    The description is the same for trained and untrained weights, in training and in evaluation, on
    any device, and under DDP and torch.compile. What a forward pass changes, such as a counter or
    the features of the last batch, is left out.

    Args:
        model: a classifier that has run on images of this kind; its state is put back.
        inputs: what the model takes.

    Returns:
        JSON values by field; the fields begin with ``architecture``.
    """
    model = unwrapped(model)
    first = next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)

    def use() -> None:
        # Other images than the black ones of earlier checks, or features that are kept look alike.
        images = torch.rand(2, *inputs.shape, generator=generator)
        # The data set's own may go to 1 or to 255; a model may refuse what is beyond its range.
        for scale in (1.0,) if inputs.own is None else (1.0, 255.0):
            batch = fitted((scale * images).to(first.device, inputs.own), model)
            with torch.no_grad(), evaluating(model), suppress(Exception):
                model(batch)

    return settled_parts(
        lambda: parts(model, "architecture", ignore=(), weights=False), use
    )  # fmt: skip
