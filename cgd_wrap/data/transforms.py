"""The user's image transforms: what they are called, what they do, and what they may be shown."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.data.pixels import CHANNELS, RESIZED_TO, check_size, is_image

NAMES = ("transform", "transforms", "_transform", "_transforms")
ENDINGS = ("_transform", "_transforms")
# Words in the names of transforms that leave the image alone, or that poison the image: such
# transforms are kept.
KEPT_WORDS = {"target", "targets", "label", "labels", "poison", "trigger", "backdoor", "bd"}


def is_image_transform(name: str, value: object) -> bool:
    """Whether an attribute of a dataset is a transform of its images, by the attribute's name."""
    if name in NAMES:
        return True
    return name.endswith(ENDINGS) and _is_about_images(name) and callable(value)


def may_be_image_transform(name: str, value: object) -> bool:
    """Whether an attribute may be a transform of images by another name: its use will tell."""
    data = isinstance(value, (Dataset, type, Mapping))
    return callable(value) and not data and not name.startswith("__") and _is_about_images(name)


def _is_about_images(name: str) -> bool:
    return KEPT_WORDS.isdisjoint(name.lower().split("_"))


def passthrough(*args: Any, **kwargs: Any) -> Any:
    """Return the arguments unchanged, as a transform of any calling convention would be called."""
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args


def class_transforms(dataset: Any, attributes: Mapping[str, Any]) -> set[str]:
    """Names of image transforms that are set on the class; an instance attribute can hide them."""
    every = {name for kind in type(dataset).__mro__ for name in vars(kind)} - set(attributes)
    names = {name for name in every if name.endswith(NAMES)}  # few: to read the others is slow
    values = {name: inspect.getattr_static(type(dataset), name) for name in names}
    code = {n for n, v in values.items() if inspect.isroutine(v) or inspect.isclass(v)}
    return {n for n in names - code if callable(values[n]) and is_image_transform(n, values[n])}


class _Wrapped:
    """Stands in for a callable of the user's: calls it, and shows its attributes and its class."""

    def __init__(self, wrapped: Callable[..., Any]) -> None:
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "wrapped":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.wrapped)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wrapped,)


class SizeChecked(_Wrapped):
    """A transform that is never shown an image that its resize would blow up beyond all bounds."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the size of each image that is given, then call the transform.

        Raises:
            PIL.Image.DecompressionBombError: see :func:`~cgd_wrap.data.pixels.check_size`.
        """
        for value in (*args, *kwargs.values()):
            _check_sizes(value)
        return self.wrapped(*args, **kwargs)


class Watched(_Wrapped):
    """A callable that notes, under its name, whether it made floats of the image it was given."""

    def __init__(
        self, wrapped: Callable[..., Any], name: str, seen: defaultdict[str, list[bool]]
    ) -> None:
        super().__init__(wrapped)
        self.name, self.seen = name, seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the callable, and note what became of an image that is its only argument."""
        result = self.wrapped(*args, **kwargs)
        given = [*args, *kwargs.values()]
        made = result.get("image") if isinstance(result, Mapping) else result
        if len(given) == 1 and is_image(given[0]):
            self.seen[self.name].append(_is_float_image(made))
        return result


def _check_sizes(value: object) -> None:
    if isinstance(value, Image.Image):
        check_size(*value.size, RESIZED_TO)
    elif isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3:
        first = value.shape[0] in CHANNELS and value.shape[2] not in CHANNELS
        height, width = value.shape[1:] if first else value.shape[:2]
        check_size(int(width), int(height), RESIZED_TO)
    elif isinstance(value, Mapping):  # a row or a batch of rows of a table
        for entry in value.values():
            for item in entry if isinstance(entry, list) else [entry]:
                if isinstance(item, Image.Image):
                    check_size(*item.size, RESIZED_TO)


def _is_float_image(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and is_image(value)
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and is_image(value)
