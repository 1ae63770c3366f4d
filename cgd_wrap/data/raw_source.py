"""Finding the form of a user's dataset that gives its images before any transform."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.pixels import (
    ROUNDING,
    as_array,
    deep_scales,
    has_bands,
    is_image,
)
from cgd_wrap.data.probes import spread
from cgd_wrap.data.samples import probes_of
from cgd_wrap.data.sources import checked, untransformed, watched
from cgd_wrap.data.transforms import passthrough
from cgd_wrap.errors import DatasetError

DEEP_PROBES = 64  # images whose largest value says how many bits all have


def raw_source(
    dataset: Any, layout: SampleLayout, fatal: Collection[int] = ()
) -> tuple[Any, dict[str, float]]:
    """Copy a dataset without its transforms, in the first form that its code can work with.

    Transforms are known by their names. Where what is left is normalised, callables of any name
    are left out that make an image of floats of each image they are given.

    Args:
        dataset: any map-style dataset.
        layout: where an item holds its image.
        fatal: samples that must not be read.

    Returns:
        The copy, and the data set's :func:`~cgd_wrap.data.pixels.deep_scales`.

    Raises:
        DatasetError: the images are normalised, or have more channels than CLIP can see, and
            nothing can be left out that makes them so.
    """
    rows = [index for index in probes_of(dataset) if index not in fatal]
    candidates = [untransformed(dataset, layout.image, fill) for fill in (None, passthrough)]
    too_many_bands: str | None = None
    for candidate in (*candidates, checked(dataset)):
        images = _probe(candidate, layout, rows)
        if not any(is_image(image) for image in images.values()):
            too_many_bands = too_many_bands or _shape_of_bands(images)
            continue
        fault = _fault_of(images)
        if fault is not None:
            names = _float_makers(candidate, layout, images)
            candidate = untransformed(dataset, layout.image, passthrough, names)
            images = _probe(candidate, layout, rows) if names else {}
            if not images or _fault_of(images) is not None:
                raise DatasetError(fault + _advice(names))
        return candidate, _scales(candidate, layout, images, fatal)
    if too_many_bands:
        raise DatasetError(
            f"{too_many_bands}, and CLIP needs 1, 3 or 4 channels. Pass clip_dataset=, the same "
            "samples in the same order as RGB images"
        )
    return candidates[0], {}


def _probe(candidate: Any, layout: SampleLayout, rows: Iterable[int]) -> dict[int, object]:
    """Read a few images, by index; none if the dataset's code needs its transform."""
    found: dict[int, object] = {}
    for index in rows:
        try:
            image = layout.image_of(candidate[index])
        except (TypeError, AttributeError, KeyError):
            return {}
        except Exception:
            continue  # an unreadable file; the next sample may be readable
        if is_image(image) or has_bands(image):
            found[index] = image
    return found


def _shape_of_bands(images: dict[int, object]) -> str | None:
    for index, image in images.items():
        return f"sample {index} has the shape {tuple(getattr(image, 'shape', ()))}"
    return None


def _fault_of(images: dict[int, object]) -> str | None:
    """Say what most of the images have that raw images can't have; None if most are fine.

    What a single image has is a fault of the image, and found when the image is read.
    """
    ranges = {i: _range_of(image) for i, image in images.items()}
    floats = {i: ends for i, ends in ranges.items() if ends is not None}
    outside = {i: (low, high) for i, (low, high) in floats.items()
               if low < -ROUNDING or high > 1 + ROUNDING}  # fmt: skip
    if not outside or 2 * len(outside) < len(floats):
        return None
    index, (low, high) = next(iter(outside.items()))
    found = f"sample {index}: expected image values in [0, 1], got [{low:.4g}, {high:.4g}]"
    if min(low for low, _ in outside.values()) >= 0 and 2 < high <= 255:
        return f"{found}: floats of 0 to 255, which must be divided by 255"
    return f"{found}: the images are already normalised and CLIP needs the raw ones"


def _range_of(image: object) -> tuple[float, float] | None:
    """Lowest and highest finite value of an array or tensor of floats; None for other images."""
    if not isinstance(image, (np.ndarray, Tensor)):
        return None
    array = as_array(image)
    if array is None or array.dtype.kind != "f":
        return None
    finite = array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _float_makers(candidate: Any, layout: SampleLayout, images: Iterable[int]) -> set[str]:
    """Names of the dataset's callables that make floats of the image, in every sample."""
    used: list[set[str]] = []
    for index in images:
        seen: defaultdict[str, list[bool]] = defaultdict(list)
        try:
            layout.image_of(watched(candidate, seen)[index])
        except Exception:  # code that can't work with a stand-in for its callable
            return set()
        used.append({name for name, made_floats in seen.items() if all(made_floats)})
    return set.intersection(*used) if used else set()


def _advice(names: set[str]) -> str:
    which = f" Here, {sorted(names)} of the dataset seem to do it." if names else ""
    return (
        ". Pass clip_dataset=, the same samples in the same order as plain images, or keep what "
        f"changes them in the dataset's transform attribute, where it can be left out.{which}"
    )


def _scales(
    candidate: Any, layout: SampleLayout, images: dict[int, object], fatal: Collection[int]
) -> dict[str, float]:
    if not deep_scales(images.values()):
        return {}
    rows = [index for index in spread(len(candidate), DEEP_PROBES) if index not in fatal]
    return deep_scales(_probe(candidate, layout, rows).values())
