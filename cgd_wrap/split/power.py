"""How small an attack a scan would have noticed, by where its control has landed.

An attack of m samples under some class is thought of as m samples like those of the control: CLIP
says of that class what it says of the control's images, and the label is learned as fast. Many such
attacks are drawn, and the share of them that makes the class suspected is the power of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.scan.control import FAMILIES
from cgd_wrap.split.class_figures import (
    NAMES,
    ClassFigures,
    figures_of_samples,
)
from cgd_wrap.split.control_scores import ControlScores, Scored
from cgd_wrap.split.suspicion import (
    evidence_in_corner,
    evidence_of_speed,
    evidence_of_wrong_labels,
)
from cgd_wrap.split.wrong_labels import WrongLabels

POWER = 0.95  # share of the attacks that are noticed
DRAWN = 100  # attacks of each size and family, in all classes together at most ALTOGETHER
ALTOGETHER = 20_000
DONORS = 60  # images of a family that are drawn from: more tell little more, and take longer
SIZES = 20  # sizes of attacks that are tried, each larger than the last by the same factor
SMALLEST, LARGEST = 4, 0.5  # of these: samples, and share of the class

WEIGHT, SQUARES, FAR = (NAMES.index(name) for name in ("weight", "squares", "far"))
WRONG, SPEED = NAMES.index("wrong"), NAMES.index("speed")


@dataclass(frozen=True)
class FamilyPlace:
    """Where the images of one trigger have landed, in the middle.

    Attributes:
        name: the family of the trigger.
        images: number of images.
        clip_rank: median rank of the wrong label under CLIP, in [0, 1].
        suspicious_rank: median rank of the wrong label under the suspicious model, in [0, 1].
    """

    name: str
    images: int
    clip_rank: float
    suspicious_rank: float


@dataclass(frozen=True)
class Power:
    """What a scan could have seen.

    Attributes:
        smallest_noticed: by class: the least number of poisoned samples of which at least 95% of
            the attacks are noticed, of whatever family; None where that is so of no number up to
            half of the class' size.
        control: where each family has landed.
    """

    smallest_noticed: tuple[int | None, ...]
    control: tuple[FamilyPlace, ...]

    @classmethod
    def of(
        cls,
        control: ControlScores,
        scored: Scored,
        wrong: WrongLabels,
        figures: ClassFigures,
        sigma_triggered: float,
        seed: int,
        calibration: Calibration = DEFAULT,
    ) -> Power:
        """Draw attacks, and see which are noticed.

        A class in which an attack hides has more in its figures than an honest class: no class
        counts for more than the median of them.

        Args:
            control: scores of the control.
            scored: scores of the data set.
            wrong: which of its labels look wrong.
            figures: figures of the classes.
            sigma_triggered: threshold of the triggered split.
            seed: decides which attacks are drawn.
            calibration: thresholds.
        """
        size = figures.size
        honest: dict[str, Any] = {}
        for name in NAMES:
            one = getattr(figures, name)
            most = size * (one / size).median()
            honest[name] = one if name == "named" else torch.minimum(one, most)
        typical = replace(figures, **honest)
        random = np.random.Generator(np.random.PCG64(seed))
        worst, places = torch.zeros_like(size), []
        for family, name in enumerate(FAMILIES):
            members = (control.family == family).nonzero().squeeze(1)
            donors = members[torch.from_numpy(random.permutation(len(members))[:DONORS])]
            if not len(donors):  # none of its images could be read
                worst[:] = math.inf
                continue
            clip = control.clip[donors, : len(size)]
            usable = control.given[donors, None] != torch.arange(len(size))
            attacks = _Attacks(
                _Place.of(clip, scored.clip),
                _Place.of(control.suspicious[donors, None].expand_as(clip), scored.suspicious),
                # Of all classes together: of one class, a few images tell little.
                float((clip > wrong.bound[: len(size)])[usable].double().mean()),
                scored.speed(control.suspicious[donors], len(size)),
                usable, sigma_triggered, random, calibration,
            )  # fmt: skip
            worst = torch.maximum(worst, attacks.smallest_noticed(typical, figures))
            own = control.clip[members, control.label[members]]
            ranks = (
                float(_share_below(some, ordered).median())
                for some, ordered in (
                    (own, scored.clip), (control.suspicious[members], scored.suspicious)
                )
            )  # fmt: skip
            places.append(FamilyPlace(name, len(members), *ranks))
        smallest = [None if one == math.inf else math.ceil(one) for one in worst.tolist()]
        return cls(tuple(smallest), tuple(places))

    def as_dict(self) -> dict[str, Any]:
        """The power as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Power:
        """Read a power from the values that :meth:`as_dict` gave."""
        smallest = (None if one is None else int(one) for one in values["smallest_noticed"])
        return cls(tuple(smallest), tuple(FamilyPlace(**one) for one in values["control"]))


def _share_below(
    scores: Float[Tensor, "*few"], ordered: Float[Tensor, "n"]
) -> Float[Tensor, "*few"]:
    """Share of ascending scores that aren't above each of a few others."""
    found = torch.searchsorted(ordered, scores.double().contiguous(), right=True)
    return found.double() / len(ordered)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the scores of a few samples stand among those of all, and among themselves.

    Attributes:
        below: share of all samples that aren't above, by class.
        own: share of the few that aren't above, by class.
        number: number of all samples.
    """

    below: Float[Tensor, "few classes"]
    own: Float[Tensor, "few classes"]
    number: int

    @classmethod
    def of(cls, scores: Float[Tensor, "few classes"], ordered: Float[Tensor, "n"]) -> _Place:
        own = (scores[:, None] >= scores[None]).double().mean(dim=1)
        return cls(_share_below(scores, ordered), own, len(ordered))

    def rank(self, more: Float[Tensor, "classes"]) -> Float[Tensor, "few classes"]:
        """Rank of each if so many like them were added to all samples."""
        return (self.number * self.below + more * self.own) / (self.number + more)


@dataclass(frozen=True, eq=False)
class _Attacks:
    """Attacks whose samples are like a few given ones.

    Attributes:
        clip: where CLIP's scores stand, against each class.
        suspicious: where the suspicious model's scores stand.
        looks_wrong: share of the images that CLIP contradicts as it does a wrong label.
        speed: share of each class' right-looking samples that were learned more slowly.
        usable: False where an image is of the class itself.
        sigma_triggered: threshold of the triggered split.
        random: draws the attacks.
        calibration: thresholds.
    """

    clip: _Place
    suspicious: _Place
    looks_wrong: float
    speed: Float[Tensor, "few classes"]
    usable: Bool[Tensor, "few classes"]
    sigma_triggered: float
    random: np.random.Generator
    calibration: Calibration

    def smallest_noticed(
        self, honest: ClassFigures, among: ClassFigures
    ) -> Float[Tensor, "classes"]:
        """By class, the least number of which most attacks are noticed; infinite if there is none.

        Larger attacks are taken for noticed, too: they are learned faster than the control was.

        Args:
            honest: figures of each class without the attack.
            among: figures of the classes that each class is compared with.
        """
        classes = len(honest.size)
        largest = (LARGEST * honest.size).clamp(min=SMALLEST)
        found = torch.full((classes,), math.inf).double()
        before = torch.zeros(classes, dtype=torch.bool)
        # The same images for all sizes: how well a few stand for all others is drawn, too.
        drawn = max(40, min(DRAWN, ALTOGETHER // classes))
        images = torch.from_numpy(self.random.dirichlet(np.ones(len(self.usable)), drawn))
        for step in range(SIZES):
            number = (SMALLEST * (largest / SMALLEST) ** (step / (SIZES - 1))).round()
            noticed = self._noticed(number, images, honest, among) >= POWER
            # Twice in a row, or the draws' chance would count for the scan.
            found = torch.where(found.isinf() & noticed & before, number, found)
            before = noticed
            if not found.isinf().any():
                break
        return found

    def _noticed(
        self,
        number: Float[Tensor, "classes"],
        images: Float[Tensor, "drawn few"],
        honest: ClassFigures,
        among: ClassFigures,
    ) -> Float[Tensor, "classes"]:
        """Share of the drawn attacks of so many samples under each class that are noticed."""
        clip, suspicious = self.clip.rank(number), self.suspicious.rank(number)
        sigma = self.sigma_triggered
        triggered = (clip > 1 - sigma) | (suspicious < sigma)
        all_wrong, none = torch.ones_like(self.usable), torch.zeros_like(self.usable)
        figures = figures_of_samples(
            clip, suspicious, triggered, all_wrong, self.speed, none, self.calibration
        )
        each = torch.stack([one.double() for one in figures], dim=-1)
        each = torch.cat([each, each[..., SPEED:] ** 2], dim=-1) * self.usable[..., None]
        means = torch.einsum("df,fcx->dcx", images, each)
        means /= torch.einsum("df,fc->dc", images, self.usable.double())[..., None].clamp(1e-9)
        sums, whole = means[..., :-1] * number[:, None], number.long().numpy()
        far = means[..., FAR].clamp(0, 1).numpy()
        for place, likely in ((FAR, far), (WRONG, self.looks_wrong)):
            drawn = self.random.binomial(whole, likely, sums.shape[:-1])
            sums[..., place] = torch.from_numpy(drawn)
        # Sums of weights, and of the speeds of wrong-looking labels, are taken for normal.
        for place, count, square in ((WEIGHT, number, SQUARES), (SPEED, sums[..., WRONG], -1)):
            spread = (means[..., square] - means[..., place] ** 2).clamp(min=0).sqrt()
            chance = torch.from_numpy(self.random.standard_normal(spread.shape))
            total = count * means[..., place] + count.sqrt() * spread * chance
            sums[..., place] = total.clamp(min=0)
        own = honest.with_more(number, sums)
        found = [
            evidence(own, among, self.calibration)
            for evidence in (evidence_in_corner, evidence_of_speed, evidence_of_wrong_labels)
        ]
        needed = self.calibration.evidence_needed
        return (torch.stack(found).amax(dim=0) > needed).double().mean(dim=0)
