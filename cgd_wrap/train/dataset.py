"""The user's dataset with tags as labels, whole or as the samples of an epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.randomness import kept_rng
from cgd_wrap.train.blending import blends
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import Draw, unpack
from cgd_wrap.train.tags import TAG

logger = escaped_logger(__name__)

NO_RUN = -1  # where a number of epochs is not known


@functools.cache  # once in each process
def _say_unexposed(kind: str) -> None:
    logger.warning(
        "Exposure has no effect: the samples' images are of type %s, which only your collate "
        "function can read. Let the dataset give PIL images, arrays or tensors.",
        kind,
    )


class GuardedDataset(Dataset[Any]):
    """The user's dataset, in the same order and length, with each label replaced by a tag.

    If an index is a ``Draw``, another image is blended in (see :mod:`cgd_wrap.train.exposure`).
    A sample keeps its structure and its label's kind. Attributes of the user's dataset are
    readable here; ``transform`` may also be set, as timm's ``create_loader`` does.

    Args:
        base: the user's dataset; not changed.
        layout: where a sample holds its image and its label.
    """

    def __init__(self, base: Any, layout: SampleLayout) -> None:
        self.base = base
        self.layout = layout

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        return self._served([index], self._one_by_one)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        # DataLoader prefers __getitems__ to __getitem__; a base that has it reads whole batches.
        return self._served(indices, getattr(self.base, "__getitems__", self._one_by_one))

    def _one_by_one(self, indices: list[int]) -> list[Any]:
        return [self.base[index] for index in indices]

    def _served(self, draws: Sequence[int], read: Callable[[list[int]], Any]) -> list[Any]:
        # Negative indices count from the end; an index out of range raises an IndexError.
        places = range(len(self))
        indices = [places[int(draw)] for draw in draws]
        plain = read(indices)
        samples = [
            self.layout.with_label(sample, TAG + index)
            for sample, index in zip(plain, indices, strict=True)
        ]
        exposed = {i: draw for i, draw in enumerate(draws) if isinstance(draw, Draw)}
        others = dict(zip(indices, plain, strict=True))
        missing = list({d.other: None for d in exposed.values() if d.other not in others})
        if missing:
            with kept_rng():  # the user's augmentation goes on as if no other had been read
                others.update(zip(missing, read(missing), strict=True))
        self._expose(samples, exposed, others)
        return samples

    def _expose(
        self, samples: list[Any], exposed: Mapping[int, Draw], others: Mapping[int, Any]
    ) -> None:
        """Blend others into all images of some samples, as the model may be fed with any of them.

        Args:
            samples: the samples, some of which are replaced.
            exposed: place of each exposed sample, and its draw.
            others: the other samples by index, which stay as they are.
        """
        theirs = {draw.other: self._images_of(others[draw.other]) for draw in exposed.values()}
        changed: dict[int, dict[int | str, Any]] = {i: {} for i in exposed}
        for tone in (False, True):
            parts = [
                (i, key, image, theirs[draw.other][key], draw.share)
                for i, draw in exposed.items() if draw.tone is tone
                for key, image in self._images_of(samples[i]).items() if key in theirs[draw.other]
            ]  # fmt: skip
            _, _, *columns = zip(*parts, strict=True) if parts else [()] * 5
            for (i, key, *_), image in zip(parts, blends(*columns, tone=tone), strict=True):
                changed[i][key] = image
        for i, images in changed.items():
            if all(image is samples[i][key] for key, image in images.items()):
                _say_unexposed(type(self.layout.image_of(samples[i])).__name__)
            samples[i] = self.layout.with_entries(samples[i], images)

    def _images_of(self, sample: Any) -> dict[int | str, Any]:
        return {key: sample[key] for key in self.layout.images_in(sample)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("base", "layout"):
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def transform(self) -> Any:
        """The user's transform."""
        return getattr(self.base, "transform", None)

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.base.transform = transform


class BalancedView(Dataset[Any]):
    """An epoch's samples as an ordinary, longer dataset, for hosts that own their sampler.

    The view holds the clean samples, with each class filled up to the size of the largest, and
    triggered and mixed samples as the configuration says. The labels are tags. What decides an
    epoch's samples lies in shared memory, so that persistent workers see :meth:`set_epoch`.

    Args:
        dataset: the guarded dataset.
        epochs: which samples an epoch holds.
    """

    def __init__(self, dataset: GuardedDataset, epochs: EpochIndices) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self._decided = torch.zeros(3, dtype=torch.int64, device="cpu").share_memory_()
        self._decide(0)

    def _decide(self, epoch: int) -> None:
        values = epoch, self.epochs.seed, NO_RUN if self.epochs.run is None else self.epochs.run
        self._decided.copy_(torch.tensor(values, device="cpu"))

    def _epochs_now(self) -> tuple[int, EpochIndices]:
        """The epoch, and the indices with the seed and the run that the main process has set."""
        epoch, seed, run = self._decided.tolist()
        return epoch, self.epochs.drawn_with(seed, None if run == NO_RUN else run)

    @property
    def indices(self) -> Int[Tensor, "m"]:
        """All indices of the epoch, packed with their exposures."""
        epoch, epochs = self._epochs_now()
        return epochs.shuffled(epoch)

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self._draws([index])[0]]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return self.dataset.__getitems__(self._draws(indices))

    def _draws(self, indices: Sequence[int]) -> list[int]:
        epoch, epochs = self._epochs_now()
        # Negative indices count from the end; an index out of range raises an IndexError.
        places = np.array([range(len(self))[int(index)] for index in indices], dtype=np.int64)
        return [unpack(packed) for packed in epochs.at(epoch, places).tolist()]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("dataset", "epochs", "indices"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def transform(self) -> Any:
        """The user's transform."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    @property
    def epoch(self) -> int:
        """The epoch whose samples the view holds, from 0."""
        return int(self._decided[0])

    def set_epoch(self, epoch: int) -> None:
        """Draw the samples, exposures and order of an epoch, which the epoch's number decides."""
        self._decide(epoch)

    def set_run(self, epochs: int | None) -> None:
        """Say how many epochs the training has, as ``protect(..., epochs=)`` does for a loader."""
        self.epochs = self.epochs.in_run_of(epochs)
        self.set_epoch(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The epoch as JSON values; how far it is served is known to the host's own sampler."""
        return {"epoch": self.epoch, **self.epochs.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Hold the epoch of a saved state; later epochs are set by the host.

        Raises:
            CacheMismatchError: the state is of other data or another split; what differs is named.
        """
        self.epochs = self.epochs.restored(state_dict)
        self.set_epoch(state_dict["epoch"])
