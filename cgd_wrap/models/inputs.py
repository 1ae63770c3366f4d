"""Finding the shape of a model's inputs, and checking the number of its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cgd_wrap.data import EvaluatedImages, RawImages
from cgd_wrap.data.layout import SampleLayout, first_readable
from cgd_wrap.data.pixels import CHANNELS, has_bands, is_image
from cgd_wrap.data.samples import probes_of
from cgd_wrap.errors import BadSampleError, NoImageError
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating, fitted
from cgd_wrap.models.supported import check_initialised
from cgd_wrap.randomness import kept_rng

FALLBACK_SIZE = (224, 224)  # pixels, for raw images of varying size
LARGEST_NORMALISED = 16.0  # normalised images lie in about [-3, 3], images of 8 bits in [0, 255]


@dataclass(frozen=True)
class InputKind:
    """What a model takes.

    Attributes:
        shape: shape of an image, [C, H, W].
        own: type of the data set's own tensors, where only these are what the model takes; None
            where any image does that is scaled to [-1, 1]. See :func:`own_type`.
    """

    shape: tuple[int, int, int]
    own: torch.dtype | None = None


def check_outputs(
    model: nn.Module,
    shape: tuple[int, int, int],
    class_names: Sequence[str],
    dtype: torch.dtype | None = None,
) -> None:
    """Check on two black images that a model gives a logit per class; the model stays as it is.

    Args:
        model: image batch -> logits.
        shape: shape of an image, [C, H, W].
        class_names: names of the classes, one per expected output.
        dtype: type of the images. Default: that of the model's weights.

    Raises:
        ValueError: the model has another number of outputs.
        TypeError: the model doesn't return logits.
    """
    outputs = _outputs_of_two(model, shape, dtype).shape[1]
    if outputs != len(class_names):
        raise ValueError(
            f"the model has {outputs} outputs, but there are {len(class_names)} classes: "
            f"{list(class_names)[:10]}"
        )


def _outputs_of_two(
    model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> Float[Tensor, "2 classes"]:
    first = next(model.parameters(), torch.zeros(()))
    with torch.no_grad(), evaluating(model), kept_rng():
        images = torch.zeros(2, *shape, device=first.device, dtype=dtype or first.dtype)
        return logits_of(model(fitted(images, model)))


def own_type(
    model: nn.Module, view: EvaluatedImages, fatal: Collection[int] = ()
) -> torch.dtype | None:
    """Find whether a model needs the data set's own tensors, and not images scaled to [-1, 1].

    It does where a few images of the data set

    - have another number of channels than 1 or 3, or
    - are integers that the model takes, since it converts them inside, or
    - are floats far beyond what normalisation gives, such as 0 to 255.

    Args:
        model: image batch -> logits; stays as it is.
        view: the images as the model is evaluated on them.
        fatal: samples that must not be read.

    Returns:
        The type of the tensors, or None where any image scaled to [-1, 1] will do.
    """
    images: list[Tensor] = []
    with kept_rng():
        for index in probes_of(view):
            try:
                if index not in fatal:
                    images.append(view[index])
            except BadSampleError:
                continue
            except NoImageError:  # a collate function makes the tensors
                return None
    images = [image for image in images if image.ndim == 3]
    if not images:
        return None
    first = images[0]
    if not first.is_floating_point():
        return first.dtype if _takes(model, tuple(first.shape), first.dtype) else None
    large = sum(float(image.abs().max()) > LARGEST_NORMALISED for image in images)
    return first.dtype if len(first) not in (1, 3) or 2 * large > len(images) else None


def input_shape(
    dataset: Any,
    layout: SampleLayout,
    raw: RawImages,
    model: nn.Module | None = None,
    fatal: Mapping[int, BadSampleError] | None = None,
) -> tuple[int, int, int]:
    """Find the shape [C, H, W] of the images that the model is trained on.

    If the dataset holds image tensors of floats, their shape is returned. If it holds raw images,
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
        fatal: samples that must not be read.

    Raises:
        ValueError: the images are raw, and the model has lazy layers that haven't seen an image.
    """
    image = layout.image_of(first_readable(dataset, fatal)[0])
    if isinstance(image, np.ndarray) and has_bands(image) and image.shape[2] not in CHANNELS:
        image = torch.from_numpy(np.ascontiguousarray(image))  # as a collate function does
    if isinstance(image, Tensor) and image.ndim == 3:
        channels, height, width = image.shape
        if image.is_floating_point() or not is_image(image):
            return channels, height, width
    if model is not None:
        check_initialised(model)  # lazy layers would take the first size that is tried
    own = set[tuple[int, int]]()
    for index in probes_of(raw):
        if index not in (fatal or {}):
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


def _takes(
    model: nn.Module | None, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> bool:
    try:
        if model is not None:
            _outputs_of_two(model, shape, dtype)
    except Exception:
        return False
    return True
