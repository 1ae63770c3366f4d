"""A positive control: known triggers on a few images, which ride along in a scan.

A scan that finds nothing has either nothing to find, or can't see. To tell the two apart, a few
images are shown again, with a trigger of ours and under a wrong label, as an attacker's would be.
Both models score them, and the suspicious model is trained on them. They stand in stores of their
own, and are in no split and no figure of the user's data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data import RawView
from cgd_wrap.data.identity import merged
from cgd_wrap.data.workers import BadSamples
from cgd_wrap.files import content_hash
from cgd_wrap.randomness import kept_rng
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.stored_logits import StoredLogits

FOLDER = "control"  # in the cache
SHARE = 1 / 400  # of the samples, for each family of triggers
MOST = 400  # images of a family: more say no more
FEWEST = 1000  # samples: of fewer, a family would have two images, and no verdict is possible
CANDIDATES = 8  # for each image, since some are bad or of the target
FAMILIES = ("patch", "blend", "warp", "tone")
_STREAM = 5  # keeps the random numbers apart from those of other parts


@dataclass(frozen=True, eq=False)
class ControlPlan:
    """Which samples are shown again, with which trigger, and under which label.

    Attributes:
        source: index of the sample whose image is shown.
        family: position in ``FAMILIES`` of the trigger.
        labels: wrong label that the image gets; a family has one target for all.
        seed: decides the triggers.
    """

    source: Int64[Tensor, "m"]
    family: Int64[Tensor, "m"]
    labels: Int64[Tensor, "m"]
    seed: int = 0

    @classmethod
    def of(cls, labels: Int64[Tensor, "n"], unreadable: BadSamples, seed: int) -> ControlPlan:
        """Choose images and targets, the same on every machine and in every process.

        Args:
            labels: given labels.
            unreadable: samples that were known to be bad when the labels were read.
            seed: decides images, targets and triggers.

        Returns:
            At most 1% of the samples; none where these are too few, or all of one class.
        """
        number = min(MOST, round(SHARE * len(labels))) if len(labels) >= FEWEST else 0
        random = np.random.Generator(np.random.PCG64([seed, _STREAM]))
        # Labels that occur: a class without samples is no target that an attacker could want.
        targets = random.permutation(np.unique(labels.numpy())) if number else np.empty(0, int)
        left = random.choice(
            len(labels), min(len(labels), CANDIDATES * len(FAMILIES) * number), replace=False
        )
        left = left[~np.isin(left, list(unreadable))]
        chosen: list[tuple[int, int, int]] = []
        for family in range(len(FAMILIES)) if len(targets) > 1 else ():
            target = int(targets[family % len(targets)])
            wrong = np.flatnonzero(labels.numpy()[left] != target)[:number]
            chosen += [(int(index), family, target) for index in left[wrong]]
            left = np.delete(left, wrong)
        source, families, given = torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3).T
        return cls(source.contiguous(), families.contiguous(), given.contiguous(), seed)

    def __len__(self) -> int:
        return len(self.source)

    def described(self) -> dict[str, Any]:
        """The plan as JSON values, for a fingerprint."""
        chosen = torch.stack([self.source, self.family, self.labels]).tolist()
        return {FOLDER: content_hash(json.dumps([self.seed, chosen]).encode())}

    def options(self, options: PassOptions) -> PassOptions:
        """The options of a pass over the plan's images, whose stores stand in a folder apart.

        Args:
            options: those of the pass over the data set, with the samples that are bad.
        """
        bad = options.unreadable
        return replace(
            options,
            folder=options.folder / FOLDER,
            dataset=merged(options.dataset, self.described()),
            unreadable={row: bad[i] for row, i in enumerate(self.source.tolist()) if i in bad},
            config=options.config.replace(max_bad_fraction=1.0),  # they have been counted
            progress=False,
        )


class ControlImages(Dataset[Image.Image]):
    """The images of a plan, with their triggers.

    Args:
        raw: gives raw images, by index.
        plan: which are shown.
    """

    def __init__(self, raw: RawView, plan: ControlPlan) -> None:
        self.raw, self.plan, self.triggers = raw, plan, Triggers(plan.seed)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> Image.Image:
        image = self.raw[int(self.plan.source[row])]
        with kept_rng():
            return self.triggers.put(int(self.plan.family[row]), image)


class Triggers:
    """A trigger of each family, drawn by a seed, so that an attacker's own is another one.

    - *patch*: nine cells of random colours at a random place, 3/32 of the shorter side wide;
    - *blend*: :class:`~cgd_wrap.attacks.Blended`, random noise of weight 0.2;
    - *warp*: :class:`~cgd_wrap.attacks.WaNet`, twice as strong as the paper's, without covers;
    - *tone*: a power of each channel's brightness between 0.55 and 0.7, or its inverse.

    Args:
        seed: decides all of them.
    """

    def __init__(self, seed: int) -> None:
        # Not before they are needed: it takes as long as all else that a scan imports of ours.
        from cgd_wrap.attacks import Blended, WaNet

        random = np.random.Generator(np.random.PCG64([seed, _STREAM, 1]))
        self.cells = 255 * random.integers(0, 2, (3, 3, 3))
        self.place = random.random(2)
        self.powers = np.exp(random.choice([-1.0, 1.0], 3) * random.uniform(0.35, 0.6, 3))
        other = int(random.integers(1 << 30))  # not a seed that an example's attack would have
        self.blended, self.warped = Blended(seed=other), WaNet(seed=other, strength=1.0)

    @cached_property
    def _by_family(self) -> list[Callable[[Image.Image], Image.Image]]:
        return [self._patch, self.blended.trigger, self.warped.trigger, self._tone]

    def put(self, family: int, image: Image.Image) -> Image.Image:
        """Put the trigger of a family on a copy of an RGB image."""
        return self._by_family[family](image)

    def _patch(self, image: Image.Image) -> Image.Image:
        marked = np.array(image)
        height, width = marked.shape[:2]
        side = max(1, round(3 / 32 * min(height, width)))
        cell = np.arange(side) * 3 // side
        top, left = int(self.place[0] * (height - side)), int(self.place[1] * (width - side))
        marked[top : top + side, left : left + side] = self.cells[cell[:, None], cell[None, :]]
        return Image.fromarray(marked)

    def _tone(self, image: Image.Image) -> Image.Image:
        levels: UInt8[np.ndarray, "256 3"] = np.rint(
            255 * (np.arange(256)[:, None] / 255) ** self.powers
        ).astype(np.uint8)
        return image.point(levels.T.reshape(-1).tolist())


@dataclass(frozen=True, eq=False)
class Control:
    """What both models say of the control's images.

    Attributes:
        plan: which images, triggers and labels these are.
        sources: the labels that the images came with, int64 [m].
        clip: CLIP's logits of the images with their triggers.
        suspicious: logits of the suspicious model, which learned them under the plan's labels.
    """

    plan: ControlPlan
    sources: Int64[Tensor, "m"]
    clip: StoredLogits
    suspicious: StoredLogits
