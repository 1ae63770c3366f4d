"""The user's dataset with tagged labels, and the table behind the tags.

A tag is an int64 label that carries the sample's index instead of its class. It is the one thing
that every host's collate function passes on untouched, and that fails loudly where a loss takes
it for a class (HF Trainer, timm, Lightning, Accelerate, plain PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.exposure import Draw, unpack
from cgd_wrap.randomness import kept_rng
from cgd_wrap.sampler import EpochIndices
from cgd_wrap.views.layout import SampleLayout

# Bit 40 marks a tag; bit 31 makes one that was cut to int32 negative, which every loss refuses.
TAG = (1 << 40) | (1 << 31)


def is_tagged(targets: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Which targets carry a sample's index."""
    return targets.long() >= (1 << 40)


def tagged_index(targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Index of each tagged sample in the user's dataset; 0 for untagged targets."""
    targets = targets.long()
    return torch.where(is_tagged(targets), targets - TAG, torch.zeros_like(targets))


class SampleTable:
    """What the loss knows of each sample: a plain holder, not module buffers.

    Buffers would be broadcast by DDP and land in every checkpoint. Copies on a device are made
    when first needed; a deep copy shares the table, a pickle leaves the device copies out.

    Attributes:
        labels: given labels, int64 [N].
        clean: bool [N].
        triggered: bool [N].
        triggered_weight: weight of the unlearning, float32 [N].
        guidance_weight: weight of the guidance, float32 [N].
        teacher_row: row of ``teacher`` for triggered samples, 0 for others, int64 [N].
        teacher: CLIP's logits of the triggered samples, float32 [max(T, 1), C].
    """

    NAMES = (
        "labels",
        "clean",
        "triggered",
        "triggered_weight",
        "guidance_weight",
        "teacher_row",
        "teacher",
    )

    def __init__(
        self,
        *,
        labels: Int[Tensor, "n"],
        clean: Bool[Tensor, "n"],
        triggered: Bool[Tensor, "n"],
        triggered_weight: Float[Tensor, "n"],
        teacher: Float[Tensor, "t classes"],
        guidance_weight: Float[Tensor, "n"] | None = None,
    ) -> None:
        rows = triggered.long().cumsum(0) - 1
        self.tensors = {
            "labels": labels,
            "clean": clean,
            "triggered": triggered,
            "triggered_weight": triggered_weight,
            "guidance_weight": triggered.float() if guidance_weight is None else guidance_weight,
            "teacher_row": torch.where(triggered, rows, torch.zeros_like(rows)),
            "teacher": teacher if len(teacher) else teacher.new_zeros(1, teacher.shape[1]),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.tensors["teacher"].shape[1]

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The table on a device, by the names in ``NAMES``."""
        if device.type == "cpu":
            return self.tensors
        if device not in self._on_device:
            self._on_device[device] = {n: t.to(device) for n, t in self.tensors.items()}
        return self._on_device[device]

    def decode(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Tagged targets -> the given labels; untagged targets stay as they are."""
        labels = self.on(targets.device)["labels"][tagged_index(targets)]
        return torch.where(is_tagged(targets), labels, targets.long())

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleTable:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "_on_device": {}}


class GuardedDataset(Dataset[Any]):
    """The user's dataset, same order and length, with each label replaced by a tag.

    An index that is a ``Draw`` shows another image through (see :mod:`cgd_wrap.exposure`).
    A sample keeps its structure and its label's kind. Attributes of the user's dataset are
    readable here; ``transform`` may also be set, as timm's ``create_loader`` does.

    Args:
        base: the user's dataset; not changed.
        layout: where the label stands in a sample.
    """

    def __init__(self, base: Any, layout: SampleLayout) -> None:
        self.base = base
        self.layout = layout

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        return self._served([index], self._one_by_one)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        # DataLoader prefers this to __getitem__; a base that has it reads batches at once.
        return self._served(indices, getattr(self.base, "__getitems__", self._one_by_one))

    def _one_by_one(self, indices: list[int]) -> list[Any]:
        return [self.base[index] for index in indices]

    def _served(self, draws: Sequence[int], read: Callable[[list[int]], Any]) -> list[Any]:
        # Negative indices count from the end; others must exist.
        indices = [range(len(self))[int(draw)] for draw in draws]
        samples = [
            self.layout.with_label(sample, TAG + index)
            for sample, index in zip(read(indices), indices, strict=True)
        ]
        exposed = [(i, draw) for i, draw in enumerate(draws) if isinstance(draw, Draw)]
        if exposed:
            with kept_rng():  # the user's augmentation goes on as if these hadn't been read
                others = read([draw.other for _, draw in exposed])
            for (i, draw), other in zip(exposed, others, strict=True):
                images = self.layout.image_of(samples[i]), self.layout.image_of(other)
                samples[i] = self.layout.with_image(samples[i], draw.shown(*images))
        return samples

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

    Clean samples, filled up to the largest class; triggered and mixed ones as the
    configuration says. Its labels are tags. The index map lies in shared memory, so that
    persistent workers see :meth:`set_epoch`.

    Args:
        dataset: the guarded dataset.
        epochs: which samples an epoch holds.
    """

    def __init__(self, dataset: GuardedDataset, epochs: EpochIndices) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self.epoch = 0
        self.indices = epochs.shuffled(0).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[unpack(int(self.indices[int(index)]))]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        packed = self.indices[torch.as_tensor(indices)].tolist()
        return self.dataset.__getitems__([unpack(value) for value in packed])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("dataset", "epochs", "epoch", "indices"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def transform(self) -> Any:
        """The user's transform."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def set_epoch(self, epoch: int) -> None:
        """Draw samples, exposures and order anew, the same for the same epoch."""
        self.epoch = epoch
        self.indices.copy_(self.epochs.shuffled(epoch))

    def set_run(self, epochs: int | None) -> None:
        """Say how many epochs the training has, as ``protect(..., epochs=)`` does for a loader."""
        self.epochs = self.epochs.in_run_of(epochs)
        self.set_epoch(self.epoch)
