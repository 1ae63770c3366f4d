"""Finding the shape of a model's inputs, and checking the number of its outputs."""

from __future__ import annotations

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
from cgd_wrap.models.supported import check_initialised
from cgd_wrap.randomness import kept_rng

FALLBACK_SIZE = (224, 224)  # pixels, for raw images of varying size


def check_outputs(
    model: nn.Module, shape: tuple[int, int, int], class_names: Sequence[str]
) -> None:
    """Check on two black images that a model gives a logit per class; the model stays as it is.

    Args:
        model: image batch -> logits.
        shape: shape of an image, [C, H, W].
        class_names: names of the classes, one per expected output.

    Raises:
        ValueError: the model has another number of outputs.
        TypeError: the model doesn't return logits.
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
    """Find the shape [C, H, W] of the images that the model is trained on.

    If the dataset holds image tensors, their shape is returned. If the dataset holds raw images,
    which a collate function turns into tensors, the size is the first that the model accepts of:

    - the size that the model was made for;
    - the images' own size, if all images are equally large;
    - the size that the model's pretrained weights were made for;
    - 224 x 224.

    Args:
        dataset: the data set as the model sees it.
        layout: where an item of the dataset holds its image.
        raw: the same samples, raw.
        model: the model to be trained; None stands for a model that accepts any size.

    Raises:
        ValueError: the images are raw, and the model has lazy layers that haven't seen an image.
    """
    image = layout.image_of(first_readable(dataset)[0])
    if isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point():
        channels, height, width = image.shape
        return channels, height, width
    if model is not None:
        check_initialised(model)  # lazy layers would take the first size that is tried
    own = set[tuple[int, int]]()
    for index in spread(len(raw), 8):
        with suppress(BadSampleError):
            own.add(raw[index].size[::-1])
    fixed, usual = _declared_sizes(model)
    sizes = [*fixed, *(own if len(own) == 1 else ()), *usual, FALLBACK_SIZE]
    shapes = [(3, *size) for size in sizes]
    return next((shape for shape in shapes if _takes(model, shape)), shapes[0])


def _declared_sizes(model: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Sizes (height, width) that a transformers or timm model needs, and sizes that it merely had.

    transformers' image processors resize to ``config.image_size``. timm's ``patch_embed`` says
    which size a network was built for. timm's ``input_size`` says at which size the weights were
    pretrained; a network needs this size only if ``fixed_input_size`` is set.
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
    """Read a number or a pair as [(height, width)]; anything else gives an empty list."""
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
