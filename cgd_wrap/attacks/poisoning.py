"""The base class of all attacks, and the poisoned and triggered data sets that they make."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeVar

import torch
from jaxtyping import Float, Int, Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.choosing import by_score, covers_among, shuffled
from cgd_wrap.attacks.raw import Images, RawSequence, check_raw, check_target, raw_image, raw_labels
from cgd_wrap.data.class_names import find_class_names
from cgd_wrap.data.layout import find_layout
from cgd_wrap.data.sources import readable
from cgd_wrap.errors import DatasetError

AttackT = TypeVar("AttackT", bound="Attack")
Transform = Callable[[Any], Any]
_POISONED, _COVER = 1, 2


@dataclass(frozen=True)
class Attack(ABC):
    """A backdoor attack on a training set.

    The base class is a dirty-label attack: ``round(rate * n)`` images, drawn among the images of
    other classes than the target, get the trigger and the target as their label. Some attacks also
    change further images, the covers, ``cover_ratio`` of them for each poisoned image. A cover
    nearly has the trigger and keeps its label, so that a network learns the exact trigger.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides every random choice; every machine chooses the same samples.

    Raises:
        ValueError: a value is out of range.
    """

    target: int = 0
    rate: float = 0.1
    seed: int = 0
    # Not an argument, so that replace() gives an attack that chooses its samples by itself again.
    _scores: Float[Tensor, "n"] | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        require(self.target >= 0, "target", "a class index >= 0", self.target)
        require(0 < self.rate <= 1, "rate", "a share in (0, 1]", self.rate)
        require(self.seed >= 0, "seed", "an integer >= 0", self.seed)
        require(0 <= self.cover_ratio < math.inf, "cover_ratio", "0 or more", self.cover_ratio)

    @property
    def cover_ratio(self) -> float:
        """Number of covers for each poisoned sample; a field in the attacks that have covers."""
        return 0.0

    @abstractmethod
    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the trigger on a copy of a test image."""

    def poison_image(self, image: Image.Image) -> Image.Image:
        """Poison a copy of a training image: here, put the trigger on it."""
        return self.trigger(image)

    def poison_sample(self, index: int, image: Image.Image) -> Image.Image:
        """Poison a copy of a training image; an attack may treat each ``index`` differently."""
        return self.poison_image(image)

    def trigger_sample(self, index: int, image: Image.Image) -> Image.Image:
        """Put the trigger on a copy of a test image; may treat each ``index`` differently."""
        return self.trigger(image)

    def cover_sample(self, index: int, image: Image.Image, images: Images) -> Image.Image:
        """Change a copy of a cover so that it nearly has the trigger; here no cover is changed.

        Args:
            index: position of the cover in the training set.
            image: the cover's image, which is not changed itself.
            images: the raw images of the training set.
        """
        return image

    def poison_label(self, label: int) -> int:
        """Return the label that a poisoned training sample of class ``label`` carries."""
        return self.target

    def candidates(self, labels: Int[Tensor, "n"]) -> Int64[Tensor, "m"]:
        """Positions of the samples that may be poisoned: here all but the target class'."""
        return torch.nonzero(labels != self.target).flatten()

    def count(self, labels: Int[Tensor, "n"]) -> int:
        """Number of samples that are poisoned."""
        return round(self.rate * len(labels))

    def preference(self, candidates: Int64[Tensor, "m"], images: Images) -> Int64[Tensor, "m"]:
        """Order in which candidates are poisoned: here a seeded shuffle."""
        return shuffled(len(candidates), self.seed)

    def select(self, labels: Int[Tensor, "n"], images: Images) -> Int64[Tensor, "k"]:
        """Choose the samples to poison: positions, ascending.

        Args:
            labels: class of every sample.
            images: the raw images, read only by attacks that choose by content.

        Raises:
            ValueError: the rate asks for more samples than there are candidates, or for none.
        """
        candidates, count = self.candidates(labels), self.count(labels)
        if not 0 < count <= len(candidates):
            raise ValueError(
                f"{type(self).__name__}(target={self.target}, rate={self.rate}) would poison "
                f"{count} of {len(labels)} samples, and {len(candidates)} qualify; choose a rate "
                "that gives at least 1 and at most that many."
            )
        if self._scores is None:
            order = self.preference(candidates, images)
        else:
            order = by_score(self._scores, candidates, len(labels))
        return candidates[order[:count]].sort().values

    def ranked_by(self: AttackT, scores: Float[Tensor, "n"]) -> AttackT:
        """Copy the attack; the copy poisons the candidates with the highest scores.

        An attacker who knows the defence would choose by the target's probability under its CLIP.

        Args:
            scores: one number for every sample of the training set.
        """
        ranked = copy.copy(self)
        object.__setattr__(ranked, "_scores", scores.detach().cpu())
        return ranked

    def poison(self, dataset: Any, transform: Transform | None = None) -> PoisonedDataset:
        """Poison a training set; see :class:`PoisonedDataset`."""
        return PoisonedDataset(dataset, self, transform)

    def triggered(self, dataset: Any, transform: Transform | None = None) -> TriggeredDataset:
        """Put the trigger on a test set; see :class:`TriggeredDataset`."""
        return TriggeredDataset(dataset, self, transform)


class _AttackedDataset(Dataset[tuple[Any, int]]):
    """Base class of data sets that put an attack on raw samples."""

    def _open(
        self, dataset: Any, attack: Attack, transform: Transform | None
    ) -> Int64[Tensor, "n"]:
        """Check the data set, keep the arguments as attributes, and return the labels."""
        check_raw(dataset)
        self.dataset, self.layout = readable(dataset), find_layout(dataset)
        self.attack, self.transform = attack, transform
        self.classes = find_class_names(dataset, self.layout)
        self.class_to_idx: dict[str, int] | None = getattr(dataset, "class_to_idx", None)
        return raw_labels(dataset, self.layout)


class PoisonedDataset(_AttackedDataset):
    """A training set of which an attack poisons some samples, in the order of the original.

    Items are ``(image, label)``: the raw image, poisoned if the attack chose the sample, and then
    transformed. Images are computed on access and depend on nothing but the index.

    Args:
        dataset: any map-style dataset of raw PIL images and integer labels, without a transform.
        attack: the attack that poisons the samples.
        transform: applied after the trigger.

    Attributes:
        targets: the labels as given to training.
        original_targets: the labels before the attack.
        poisoned: int64, positions of the poisoned samples, ascending.
        covered: int64, positions of the covers, ascending; covers aren't poisoned and keep their
            labels.
        classes, class_to_idx: the dataset's own attributes, else None.

    Raises:
        DatasetError: the dataset has a transform, holds no PIL images, or lacks the target class.
        ValueError: the rate asks for no sample or for more than qualify.
    """

    def __init__(self, dataset: Any, attack: Attack, transform: Transform | None = None) -> None:
        labels = self._open(dataset, attack, transform)
        check_target(attack.target, labels, self.classes)
        self._images = RawSequence(self.dataset, self.layout)
        self.poisoned = attack.select(labels, self._images)
        self.covered = covers_among(labels, self.poisoned, attack.cover_ratio, attack.seed)
        self.original_targets: list[int] = labels.tolist()
        self.targets = list(self.original_targets)
        for index in self.poisoned.tolist():
            self.targets[index] = attack.poison_label(self.original_targets[index])
        self._part = torch.zeros(len(labels), dtype=torch.uint8)
        self._part[self.poisoned], self._part[self.covered] = _POISONED, _COVER

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        position = range(len(self))[index]
        image = raw_image(self.dataset, self.layout, position)
        if self._part[position] == _POISONED:
            image = self.attack.poison_sample(position, image)
        elif self._part[position] == _COVER:
            image = self.attack.cover_sample(position, image, self._images)
        return (self.transform(image) if self.transform else image), self.targets[position]


class TriggeredDataset(_AttackedDataset):
    """A test set's images of all classes but the target, triggered, with their true labels.

    The share of the images that a model takes for the target is the attack success rate; the share
    that the model still classifies right is the robust accuracy.

    Args:
        dataset: any map-style dataset of raw PIL images and integer labels, without a transform.
        attack: the attack whose trigger is put on the images.
        transform: applied after the trigger.

    Attributes:
        targets: the true labels.
        indices: int64, position of each item in ``dataset``.
        classes, class_to_idx: the dataset's own attributes, else None.

    Raises:
        DatasetError: the dataset has a transform, holds no PIL images, or only the target class.
    """

    def __init__(self, dataset: Any, attack: Attack, transform: Transform | None = None) -> None:
        labels = self._open(dataset, attack, transform)
        self.indices = torch.nonzero(labels != attack.target).flatten()
        if len(self.indices) == 0:
            raise DatasetError(
                f"all {len(labels)} test images are of the target class {attack.target}, so "
                "there is none to trigger; pass a test set with other classes."
            )
        self.targets: list[int] = labels[self.indices].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        item = range(len(self))[index]
        place = int(self.indices[item])
        image = self.attack.trigger_sample(place, raw_image(self.dataset, self.layout, place))
        return (self.transform(image) if self.transform else image), self.targets[item]
