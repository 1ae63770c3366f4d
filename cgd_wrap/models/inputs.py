"""What a model takes and gives: the shape of its inputs, the number of its outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cgd_wrap.data import RawImages
from cgd_wrap.data.layout import SampleLayout, first_readable
from cgd_wrap.data.probes import spread
from cgd_wrap.errors import BadSampleError
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating
from cgd_wrap.randomness import kept_rng

logger = logging.getLogger(__name__)

FALLBACK_SIZE = (224, 224)  # pixels, for raw images of varying size


def check_outputs(
    model: nn.Module, shape: tuple[int, int, int], class_names: Sequence[str]
) -> None:
    """Try the model on two black images; its modes and the random streams stay as they are.

    Args:
        model: image batch -> logits.
        shape: of an image, [C, H, W].
        class_names: one per expected output.

    Raises:
        ValueError: it has another number of outputs.
        TypeError: it doesn't return logits.
    """
    outputs = _outputs_of_two(model, shape).shape[1]
    if outputs != len(class_names):
        raise ValueError(
            f"the model has {outputs} outputs, but there are {len(class_names)} classes: "
            f"{list(class_names)[:10]}"
        )


def _outputs_of_two(model: nn.Module, shape: tuple[int, int, int]) -> Float[Tensor, "2 classes"]:
    first = next(model.parameters(), torch.zeros(()))
    with torch.no_grad(), evaluating(model), kept_rng():
        images = torch.zeros(2, *shape, device=first.device, dtype=first.dtype)
        return logits_of(model(images))


def input_shape(
    dataset: Any, layout: SampleLayout, raw: RawImages, model: nn.Module | None = None
) -> tuple[int, int, int]:
    """Shape [C, H, W] of what the model is trained on.

    That of the dataset's tensors. Where it holds raw images, which a collate function turns into
    tensors, the first of these that the model takes: the size that it was made for; the images'
    own, if they are all alike; the size that its weights were made for; 224 x 224.

    Args:
        dataset: as the model sees it.
        layout: where its images stand.
        raw: the same samples, raw.
        model: what is trained; None takes any size, and says none.
    """
    image = layout.image_of(first_readable(dataset)[0])
    if isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point():
        channels, height, width = image.shape
        return channels, height, width
    own = set[tuple[int, int]]()
    for index in spread(len(raw), 8):
        with suppress(BadSampleError):
            own.add(raw[index].size[::-1])
    fixed, usual = _declared_sizes(model)
    sizes = [*fixed, *(own if len(own) == 1 else ()), *usual, FALLBACK_SIZE]
    shapes = [(3, *size) for size in sizes]
    return next((shape for shape in shapes if _takes(model, shape)), shapes[0])


def _declared_sizes(model: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(height, width) that a model of transformers or timm was made for; and what is just usual.

    transformers' image processors resize to ``config.image_size``. timm's ``patch_embed`` says
    what a network was built for, ``input_size`` what its pretrained weights saw, which only binds
    some.
    """
    config = getattr(model, "config", None)
    fixed = [
        *_as_size(getattr(getattr(model, "patch_embed", None), "img_size", None)),
        *_as_size(getattr(getattr(config, "vision_config", config), "image_size", None)),
    ]
    weights = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    weights = weights if isinstance(weights, Mapping) else {}
    usual = _as_size(tuple(weights.get("input_size") or ())[1:])
    return ([*fixed, *usual], []) if weights.get("fixed_input_size") else (fixed, usual)


def _as_size(value: object) -> list[tuple[int, int]]:
    """One (height, width), of a number or a pair; none of anything else."""
    match value:
        case int() if value > 0:
            return [(value, value)]
        case [int() as height, int() as width] if min(height, width) > 0:
            return [(height, width)]
    return []


def _takes(model: nn.Module | None, shape: tuple[int, int, int]) -> bool:
    try:
        if model is not None:
            _outputs_of_two(model, shape)
    except Exception:
        return False
    return True
