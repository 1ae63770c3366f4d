"""Tags: labels that carry a sample's index, and the table of what the loss knows of each sample.

A tag is an int64 label that carries the sample's index instead of its class. The collate functions
of all hosts (HF Trainer, timm, Lightning, Accelerate, plain PyTorch) pass a tag on untouched, and a
loss that takes a tag for a class fails loudly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.config import CGDConfig
from cgd_wrap.split.result import ScanResult

# Bit 40 marks a tag. Bit 31 makes a tag negative if it is cut to int32: every loss refuses it.
TAG = (1 << 40) | (1 << 31)


def is_tagged(targets: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Tell which targets are tags, which carry a sample's index."""
    return targets.long() >= (1 << 40)


def tagged_index(targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Index of each tagged sample in the user's dataset; 0 for untagged targets."""
    return (targets.long() - TAG).clamp(min=0)


class ReadTargets(NamedTuple):
    """What a batch's targets say: which are tags, of which samples, and all labels.

    Attributes:
        tagged: whether each target is a tag; None: all are.
        indices: index of each tagged sample; 0 for untagged targets.
        labels: given label of each tagged sample; untagged targets as they are.
    """

    tagged: Bool[Tensor, "*shape"] | None
    indices: Int[Tensor, "*shape"]
    labels: Int[Tensor, "*shape"]


class SampleTable:
    """A table of what the loss knows of each sample.

    The tensors are no module buffers, which DDP would broadcast and every checkpoint would hold.
    Copies on a device are made when first needed; a deep copy shares the table, a pickle leaves the
    device copies out.

    Attributes:
        labels: given labels, int64 [N].
        clean: members of the clean split, bool [N].
        triggered: members of the triggered split, bool [N].
        triggered_weight: weight of the unlearning, float32 [N].
        guidance_weight: weight of the guidance, float32 [N].
        class_weight: weight of the clean samples of each class, float32 [C]; see
            :func:`~cgd_wrap.functional.split.draw_weight`.
        shares: weights of each sample in the loss' three parts, 0 where it has none: of a clean
            sample its class' weight, then guidance and unlearning; float32 [3, N].
        teacher_row: row of ``teacher`` for triggered samples, 0 for others, int32 [N].
        teacher: CLIP's logits of the triggered samples, float32 [max(T, 1), C].
    """

    NAMES = (
        "labels",
        "clean",
        "triggered",
        "triggered_weight",
        "guidance_weight",
        "class_weight",
        "shares",
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
        class_weight: Float[Tensor, "classes"] | None = None,
    ) -> None:
        rows = triggered.cumsum(0, dtype=torch.int32) - 1
        if guidance_weight is None:
            guidance_weight = triggered.float()
        if class_weight is None:
            class_weight = torch.ones(teacher.shape[1])
        weights = (class_weight[labels], guidance_weight, triggered_weight)
        masks = (clean, triggered, triggered)
        self.tensors = {
            "labels": labels,
            "clean": clean,
            "triggered": triggered,
            "triggered_weight": triggered_weight,
            "guidance_weight": guidance_weight,
            "class_weight": class_weight,
            "shares": torch.stack([w * m for w, m in zip(weights, masks, strict=True)]),
            "teacher_row": rows.masked_fill_(~triggered, 0),
            "teacher": teacher if len(teacher) else teacher.new_zeros(1, teacher.shape[1]),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    @classmethod
    def for_result(cls, result: ScanResult, config: CGDConfig) -> SampleTable:
        """Make the table of a scanned data set.

        Args:
            result: result of the scan.
            config: how triggered samples and small classes are weighed, and whether CLIP's logits
                are corrected for labels that may be wrong.
        """
        labels = result.labels
        ranks, triggered, teacher = result.entropy_map, result.split.triggered, result.teacher
        weight = functional.corner_weight(
            ranks.clip_rank, ranks.suspicious_rank, power=config.corner_power
        )
        doubt = None
        if config.doubt_labels:
            given = labels[triggered]
            # A clean-label attack's samples are poisoned, but their labels are right.
            rejected = 1 - teacher.float().softmax(dim=1).gather(1, given[:, None]).squeeze(1)
            doubt = weight.clone()
            doubt[triggered] = torch.maximum(
                weight[triggered], result.poison_probability[triggered] * rejected
            )
            # Poison that only CLIP finds is not in the corner.
            found = [one.label for one in result.poison_estimate.classes if one.found_by_clip_alone]
            weight = torch.where(torch.isin(labels, labels.new_tensor(found)), doubt, weight)
            teacher = functional.doubted_teacher(teacher, given, doubt[triggered])
        drawn = torch.bincount(
            labels[result.split.clean & ~result.held_out], minlength=teacher.shape[1]
        )
        return cls(
            labels=labels,
            clean=result.split.clean,
            triggered=triggered,
            triggered_weight=weight,
            guidance_weight=doubt,
            class_weight=functional.draw_weight(drawn, config.max_epoch_growth),
            teacher=teacher,
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.tensors["teacher"].shape[1]

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the table's tensors on a device, by the names in ``NAMES``."""
        if device.type == "cpu":
            return self.tensors
        if device not in self._on_device:
            self._on_device[device] = {n: t.to(device) for n, t in self.tensors.items()}
        return self._on_device[device]

    def decode(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Turn tagged targets into the given labels; untagged targets stay as they are."""
        return self.read(targets).labels

    def read(self, targets: Int[Tensor, "*shape"], *, all_tagged: bool = False) -> ReadTargets:
        """Read tagged and untagged targets; ``all_tagged`` says that all are known to be tags."""
        known = self.on(targets.device)["labels"]
        if all_tagged:
            index = targets.long() - TAG
            return ReadTargets(None, index, known[index])
        tagged, index = is_tagged(targets), tagged_index(targets)
        return ReadTargets(tagged, index, torch.where(tagged, known[index], targets.long()))

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleTable:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "_on_device": {}}
