"""Predicting classes with a model; its modes and the random streams end as they began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap.errors import DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.randomness import kept_rng

logger = escaped_logger(__name__)

IMAGE_KEYS = ("pixel_values", "image", "img", "images")
LABEL_KEYS = ("labels", "label")


def predict(
    model: nn.Module, data: Any, *, batch_size: int = 256, device: torch.device | str | None = None
) -> Int64[Tensor, "n"]:
    """Classes that a model predicts; the first value of :func:`predict_with_labels`."""
    return predict_with_labels(model, data, batch_size=batch_size, device=device)[0]


def predict_with_labels(
    model: nn.Module, data: Any, *, batch_size: int = 256, device: torch.device | str | None = None
) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
    """Run a model in evaluation mode over a dataset or a loader, in its order.

    The training mode of every submodule and the CPU's random streams end as they began.

    Args:
        model: image batch -> logits [B, C], or an output with ``.logits``.
        data: a map-style dataset, or a DataLoader, of ``(image tensor, label, ...)`` or of dicts
            (``pixel_values`` and ``labels``, or ``image`` and ``label``).
        batch_size: images per step; not used for a DataLoader.
        device: where the images go. Default: where the model's first parameter is.

    Returns:
        Predictions and labels, on the CPU. A sample whose logits hold NaN is predicted as -1,
        which is no class, and a warning is logged.

    Raises:
        DatasetError: samples hold no image tensor or no label.
        TypeError: the model returns neither logits nor an output with ``.logits``.
    """
    loader = data if isinstance(data, DataLoader) else _loader(data, batch_size)
    where = _device_of(model) if device is None else torch.device(device)
    predictions, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    with evaluating(model), _streams_kept(loader), torch.no_grad():
        for batch in loader:
            image, label = _image_and_label(batch)
            predictions.append(_classes(model(fitted(image.to(where), model))))
            labels.append(torch.as_tensor(label).to("cpu", torch.int64))
    unusable = sum(int((part < 0).sum()) for part in predictions)
    if unusable:
        logger.warning("%d samples have NaN logits; they count as wrong (class -1)", unusable)
    return torch.cat(predictions), torch.cat(labels)


def _loader(dataset: Any, batch_size: int) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=batch_size, collate_fn=_collate, generator=torch.Generator()
    )


def _collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Stack images and labels, and leave out whatever else the samples hold."""
    pairs = [_image_and_label(sample) for sample in samples]
    for image, _ in pairs:
        if not isinstance(image, Tensor):
            raise DatasetError(
                f"samples hold a {type(image).__name__} where the model needs a tensor [C, H, W]; "
                "give the dataset the transform that the model is evaluated with."
            )
    return torch.stack([image for image, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


def _image_and_label(sample: Any) -> tuple[Any, Any]:
    """Take image and label from a sample or a batch: from a tuple by position, a dict by key."""
    if isinstance(sample, Mapping):
        image = next((key for key in IMAGE_KEYS if key in sample), None)
        label = next((key for key in LABEL_KEYS if key in sample), None)
        if image is not None and label is not None:
            return sample[image], sample[label]
        got = f"a dict with keys {sorted(map(str, sample))}"
    elif isinstance(sample, (tuple, list)) and len(sample) >= 2:
        return sample[0], sample[1]
    else:
        got = f"a {type(sample).__name__}"
    raise DatasetError(
        f"samples must be (image, label, ...) or dicts with one of {IMAGE_KEYS} and one of "
        f"{LABEL_KEYS}, got {got}."
    )


def _classes(output: Any) -> Int64[Tensor, "b"]:
    logits = logits_of(output)
    # argmax calls an all-NaN row class 0, which may well be the target.
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1).cpu()


def _device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def fitted(images: Tensor, model: nn.Module) -> Tensor:
    """Cast floats to the type of a model's weights; integers stay, since the model converts them.

    Args:
        images: a batch of images, on the model's device.
        model: image batch -> logits.
    """
    if not images.is_floating_point():
        return images
    return images.to(next((p.dtype for p in model.parameters()), images.dtype))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; on leaving, each submodule gets its own mode back.

    Some submodules may be in evaluation mode on purpose, since they are frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _streams_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Restore, on leaving, the global random streams and the stream that the loader draws from."""
    generator = loader.generator
    state = generator.get_state() if generator is not None else None
    try:
        with kept_rng():
            yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)
