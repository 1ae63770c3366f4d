"""Finding where a dataset's items hold their image and their label."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from cgd_wrap.data.pixels import describe, has_bands, is_image, is_picture
from cgd_wrap.data.samples import Samples, probes_of
from cgd_wrap.data.sources import is_table, locate
from cgd_wrap.errors import BadSampleError, DatasetError
from cgd_wrap.randomness import kept_rng

IMAGE_NAMES = ("image", "img", "pixel_values", "images", "picture", "x", "input", "inputs", "data")
LABEL_NAMES = (
    "label", "labels", "target", "targets", "y", "fine_label", "class", "cls", "class_id",
    "category", "class_label",
)  # fmt: skip


@dataclass(frozen=True)
class SampleLayout:
    """Position (tuples, lists) or key (dicts) of the image and of the label in a sample."""

    image: int | str
    label: int | str

    def image_of(self, sample: Any) -> Any:
        """Take the image from a sample."""
        return sample[self.image]

    def label_of(self, sample: Any) -> Any:
        """Take the label from a sample."""
        return sample[self.label]

    def with_label(self, sample: Any, label: int) -> Any:
        """Copy a sample with another label, of the same kind, in the same structure.

        Integers stay ``int``, NumPy scalars become ``np.int64`` and tensors int64: no narrower type
        could hold a tag (see :mod:`cgd_wrap.train.tags`). A one-hot row becomes a 0-d tensor.
        """
        return _replaced(sample, self.label, _same_kind(sample[self.label], label))

    def images_in(self, sample: Any) -> list[int | str]:
        """Where a sample holds images: its image first, then others, such as the raw image.

        Others count where they can hardly be anything else: PIL images of intensities, and float or
        byte arrays of 1, 3 or 4 channels. Boxes and masks of class numbers don't count.
        """
        keys = list(sample) if isinstance(sample, Mapping) else range(len(sample))
        own = {self.image, self.label} | {
            len(sample) + key for key in (self.image, self.label) if isinstance(key, int)
        }
        return [self.image, *(k for k in keys if k not in own and is_picture(sample[k]))]

    def with_entries(self, sample: Any, entries: Mapping[int | str, Any]) -> Any:
        """Copy a sample with other entries, in the same structure."""
        for key, value in entries.items():
            sample = _replaced(sample, key, value)
        return sample


def find_layout(
    dataset: Any,
    *,
    image_key: int | str | None = None,
    label_key: int | str | None = None,
    fatal: Mapping[int, BadSampleError] | None = None,
) -> SampleLayout:
    """Find where the items of a map-style dataset hold image and label, from a first item.

    An array or tensor of any number of channels is taken for the image where nothing else is one.

    Args:
        dataset: any dataset with ``__getitem__`` and ``__len__``.
        image_key: position or key of the image, where the guess would be wrong.
        label_key: position or key of the label, where the guess would be wrong.
        fatal: samples that must not be read, from
            :func:`~cgd_wrap.data.samples.fatal_probes`.

    Raises:
        TypeError: the dataset isn't map-style, or its items hold no image.
        DatasetError: the dataset has no items, or an item has several candidates.
        BadSampleError: of a few samples, none could be read.
    """
    check_map_style(dataset)
    sample, index = first_readable(dataset, fatal)
    if isinstance(sample, Mapping):
        leaf = locate(dataset, index)[0]
        image, label = _keys_in_mapping(sample, leaf, image_key, label_key)
    elif isinstance(sample, (tuple, list)):
        image, label = _keys_in_sequence(sample, index, image_key, label_key)
    else:
        raise TypeError(
            f"sample {index}: expected a tuple, list or dict with an image and a label, "
            f"got {describe(sample)}"
        )
    for name, key in (("image_key", image), ("label_key", label)):
        inside = key in sample if isinstance(sample, Mapping) else _is_position(key, sample)
        if not inside:
            raise DatasetError(f"{name}={key!r} is not in sample {index}: {_outline(sample)}")
    if not _can_be_image(sample[image]):
        raise TypeError(
            f"sample {index}: expected an image at {image!r}, got {describe(sample[image])}. "
            f"The sample holds {_outline(sample)}; pass image_key= and label_key="
        )
    return SampleLayout(image, label)


def check_map_style(dataset: Any) -> None:
    """Refuse a dataset without index, length or samples.

    Raises:
        TypeError: the dataset isn't map-style.
        DatasetError: the dataset is empty.
    """
    kind = type(dataset)
    if dataset is None:
        raise TypeError("expected a dataset, got None: make the guard once the data are loaded")
    if isinstance(dataset, DataLoader):
        raise TypeError("expected a dataset, got a DataLoader: pass loader.dataset")
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"expected one dataset, got a {kind.__name__} with the keys {list(dataset)[:10]}: "
            "pass one split of it, such as dataset['train']"
        )
    indexed = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    if isinstance(dataset, IterableDataset) or not indexed:
        raise TypeError(
            f"expected a map-style dataset (with __getitem__ and __len__), got {kind.__name__}: "
            "samples are scored one by one and found again by their index, which a stream does "
            "not have. Store the samples first, for example in a datasets.Dataset or a list"
        )
    if len(dataset) == 0:
        raise DatasetError(f"{kind.__name__} holds no samples")


def first_readable(
    dataset: Any, fatal: Mapping[int, BadSampleError] | None = None
) -> tuple[Any, int]:
    """Find a sample that can be read: the sample, and its index.

    Args:
        dataset: any map-style dataset.
        fatal: samples that must not be read.

    Raises:
        BadSampleError: of a few samples, none could be read.
    """
    first: BadSampleError | None = None
    samples, fatal = Samples(dataset), fatal or {}
    with kept_rng():
        for index in probes_of(dataset):
            try:
                if index in fatal:
                    raise fatal[index]
                return samples[index], index
            except BadSampleError as error:
                first = first or error
    assert first is not None
    raise first


def _keys_in_sequence(
    sample: Sequence[Any], index: int, image_key: int | str | None, label_key: int | str | None
) -> tuple[int | str, int | str]:
    image = image_key
    if image is None:
        places = range(len(sample))
        image = next((k for k in places if is_image(sample[k])), None)
        if image is None:
            image = next((k for k in places if has_bands(sample[k])), None)
    if image is None or len(sample) < 2:
        raise TypeError(
            f"sample {index}: expected an image and a label, got {_outline(sample)}. "
            "If one of these is an image, pass image_key= and label_key="
        )
    if label_key is not None:
        return image, label_key
    start = int(image) + 1
    order = [*range(start, len(sample)), *range(int(image))]
    label = next((k for k in order if _is_label(sample[k])), order[0])
    return image, label


def _keys_in_mapping(
    sample: Mapping[str, Any], leaf: Any, image_key: int | str | None, label_key: int | str | None
) -> tuple[int | str, int | str]:
    features = dict(leaf.features) if is_table(leaf) else {}
    if image_key is None:
        # HF's own scripts keep the raw image beside the float tensor that the model is trained on.
        ready = [k for k, v in sample.items() if _can_be_image(v) and _is_float_tensor(v)]
        image_key = _choose("image", ready, IMAGE_NAMES) if ready else None
    if image_key is None:
        typed = [k for k in sample if type(features.get(k)).__name__ == "Image"]
        image_key = _choose("image", typed, IMAGE_NAMES) if typed else None
    if image_key is None:
        images = [k for k, value in sample.items() if is_image(value)]
        images = images or [k for k, value in sample.items() if has_bands(value)]
        image_key = _choose("image", images, IMAGE_NAMES, sample)
    if label_key is None:
        typed = [k for k in sample if type(features.get(k)).__name__ == "ClassLabel"]
        named = [k for k in sample if k != image_key and str(k).lower() in LABEL_NAMES]
        other = [k for k, v in sample.items() if k != image_key and _is_label(v)]
        label_key = _choose("label", typed or named or other, LABEL_NAMES, sample)
    return image_key, label_key


def _choose(
    what: str, keys: Sequence[str], names: Sequence[str], sample: Mapping[str, Any] | None = None
) -> str:
    """Choose the only key, or else the key that comes first in ``names``."""
    if len(keys) == 1:
        return keys[0]
    known = sorted((names.index(k.lower()), k) for k in keys if k.lower() in names)
    if known:
        return known[0][1]
    if not keys and what == "image":
        raise TypeError(f"expected an image in the sample, got {_outline(sample or {})}")
    raise DatasetError(
        f"which key holds the {what}? Candidates: {list(keys)}"
        + (f" in {_outline(sample)}" if sample else "")
        + f"; pass {what}_key="
    )


def _can_be_image(value: object) -> bool:
    return is_image(value) or has_bands(value)


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_label(value: object) -> bool:
    """Whether a value can be meant as a label; whether the label is valid is checked later."""
    if isinstance(value, (int, float, np.integer, np.floating)):
        return True
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim < 2 and not is_image(value)
    return False


def _is_position(key: int | str, sample: Sequence[Any]) -> bool:
    return isinstance(key, int) and -len(sample) <= key < len(sample)


def _replaced(sample: Any, key: int | str, value: Any) -> Any:
    """Copy a dict, tuple, named tuple or list with one entry changed."""
    if isinstance(sample, (dict, MutableMapping)):
        changed = copy.copy(sample)
        changed[key] = value
        return changed
    if isinstance(sample, tuple):
        items = list(sample)
        items[int(key)] = value
        return getattr(type(sample), "_make", type(sample))(items)
    changed = copy.copy(sample)
    changed[int(key)] = value
    return changed


def _same_kind(old: Any, label: int) -> Any:
    if isinstance(old, torch.Tensor):
        shape = tuple(old.shape) if old.numel() == 1 else ()
        return torch.full(shape, label, dtype=torch.int64, device=old.device)
    if isinstance(old, np.ndarray):
        return np.full(old.shape if old.size == 1 else (), label, dtype=np.int64)
    return np.int64(label) if isinstance(old, np.generic) else int(label)


def _outline(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in sample.items()) + "}"
    return "(" + ", ".join(describe(value) for value in sample) + ")"


def check_same_length(dataset: Any, **others: Any) -> None:
    """Refuse other views of the dataset that can't have the same samples.

    Args:
        dataset: the user's dataset.
        others: other views, or None, each under the name of the argument that gave the view.

    Raises:
        DatasetError: the lengths differ.
    """
    for name, other in others.items():
        if other is not None and len(other) != len(dataset):
            raise DatasetError(
                f"{name} has {len(other)} samples and the dataset {len(dataset)}: it must hold the "
                "same samples in the same order"
            )
