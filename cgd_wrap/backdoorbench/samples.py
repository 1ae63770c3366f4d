"""The poisoned training set and the triggered test set of an attack result, as data sets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from cgd_wrap.backdoorbench.clean_data import open_rgb
from cgd_wrap.backdoorbench.errors import AttackResultError
from cgd_wrap.backdoorbench.result import AttackResult, truth
from cgd_wrap.backdoorbench.stored import StoredSamples
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import find_layout

# Mean and standard deviation by which BackdoorBench normalises, for values in [0, 1].
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
CROP_PADDING = 4  # pixels, of BackdoorBench's training transform
FLIPPED = ("cifar10",)  # the one data set whose images BackdoorBench also flips at random


class BackdoorSamples(Dataset[tuple[Any, int]]):
    """A clean data set in which some images are replaced by images that an attack stored.

    Items are ``(image, label)``. Every image has the size that the attack worked at.

    Args:
        clean: the part of the clean data set that the attack started from.
        samples: which samples the attack replaced, and by which images and labels.
        image_size: height and width in pixels.
        transform: RGB image -> anything.

    Attributes:
        targets: the labels that the items carry.
        given_targets, original_targets: labels after and before the attack.
        original_index: position of each sample in ``clean``, int64 [N].
        is_poisoned, is_noise: which samples are poisoned, and which are noise, bool [N]; see
            :func:`~cgd_wrap.backdoorbench.result.truth`.
        classes: names in the order of the labels, or None where ``clean`` doesn't know them.
        paths: path of each sample's stored image, or None.

    Raises:
        AttackResultError: ``clean`` is another data set, or another part of the data set.
    """

    def __init__(
        self,
        clean: Any,
        samples: StoredSamples,
        image_size: tuple[int, int],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        if len(clean) != samples.clean_length:
            raise AttackResultError(
                f"the attack started from {samples.clean_length} clean images, but this data set "
                f"has {len(clean)}: pass the part of the data that it was made from"
            )
        self.clean, self.transform, self.image_size = clean, transform, image_size
        self.layout = find_layout(clean)
        self.is_poisoned, self.is_noise = truth(samples)
        self.original_index = samples.original_index
        labels = read_labels(clean, self.layout, None)[self.original_index]
        self.given_targets = torch.where(samples.stored, samples.given, labels).tolist()
        self.original_targets = torch.where(samples.stored, samples.original, labels).tolist()
        self.targets: list[int] = self.given_targets
        self.classes = getattr(clean, "classes", None)
        self.paths = list(samples.files)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        position = range(len(self))[int(index)]
        path = self.paths[position]
        if path is None:
            sample = self.clean[int(self.original_index[position])]
            image = self.layout.image_of(sample).convert("RGB")
        else:
            image = open_rgb(path)
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        label = self.targets[position]
        return (image if self.transform is None else self.transform(image)), label

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> BackdoorSamples:
        """Copy the data set with another transform."""
        changed = copy.copy(self)
        changed.transform = transform
        return changed

    def with_original_labels(self) -> BackdoorSamples:
        """Copy the data set with the labels before the attack, for measuring robust accuracy."""
        changed = copy.copy(self)
        changed.targets = self.original_targets
        return changed


def poisoned_samples(result: AttackResult, clean_train: Any) -> BackdoorSamples:
    """Return the poisoned training set of an attack result, without a transform.

    Args:
        result: the attack result.
        clean_train: training part of the clean data, as ``(PIL image, label)``.
    """
    return BackdoorSamples(clean_train, result.train, result.image_size)


def triggered_samples(result: AttackResult, clean_test: Any) -> BackdoorSamples:
    """Return the triggered test set, without a transform, with the labels that the attacker wants.

    Args:
        result: the attack result.
        clean_test: test part of the clean data, as ``(PIL image, label)``.
    """
    return BackdoorSamples(clean_test, result.test, result.image_size)


def image_transform(data_set: str, image_size: tuple[int, int], *, augment: bool) -> Any:
    """Build BackdoorBench's transform of a data set: PIL image -> normalised tensor [3, H, W].

    Args:
        data_set: name of the data set, which decides normalisation and flips.
        image_size: height and width in pixels.
        augment: for training: a random crop with 4 pixels of padding, and flips on CIFAR-10.

    Raises:
        ValueError: the data set's normalisation isn't known.
    """
    from torchvision import transforms

    if data_set not in NORMALISATION:
        raise ValueError(
            f"BackdoorBench's transform of {data_set!r} is not known here, only of "
            f"{sorted(NORMALISATION)}"
        )
    steps: list[Any] = [transforms.Resize(image_size)]
    if augment:
        steps.append(transforms.RandomCrop(image_size, padding=CROP_PADDING))
        if data_set in FLIPPED:
            steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(*NORMALISATION[data_set])]
    return transforms.Compose(steps)
