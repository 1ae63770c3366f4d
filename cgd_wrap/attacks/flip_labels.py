"""FLIP: an attack that plants a backdoor by changing labels alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int, Int64
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.choosing import shuffled
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.label_flip import LabelFlip
from cgd_wrap.attacks.label_matching import Pairs, expert_trajectory, matched_logits
from cgd_wrap.attacks.poisoning import Attack
from cgd_wrap.attacks.raw import Images
from cgd_wrap.attacks.surrogate import Material, as_planes
from cgd_wrap.errors import CGDError
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)

_EXPERT_STREAM = 105


@dataclass(frozen=True)
class FLIP(FittedAttack):
    """An attack that relabels clean images so that a network learns a trigger from the labels.

    Clean-image: no training pixel is changed. The attack has three steps:

    - A network, the expert, is trained on the clean images and on triggered copies of some of
      them, which are labelled as the target.
    - The labels of the clean images are optimised so that a gradient step on these images, from
      states along the expert's training, is the expert's step.
    - The images whose optimised logit of the target exceeds that of their own label most are
      relabelled as the target.

    Source: Jha, Hayase and Oh, "Label Poisoning is All You Need", arXiv 2310.18933. In the paper a
    sample may take any new label, and a sinusoid of 6 grey levels moves one class to the target by
    1500 labels of 50,000. Here relabelled samples take the target's label, and the trigger works on
    every class. A sinusoid is too weak for that, so the trigger is a trait that images have by
    nature: the warm tint.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is relabelled, in (0, 1].
        seed: decides which images are copied for the expert, and all training.
        surrogate_epochs: passes in the expert's training, at least 1.
        surrogate_samples: largest number of images that are looked at, and so may be relabelled,
            at least 2.
        expert: an attack that needs no fit. Its ``trigger`` is put on the expert's copies and on
            test images; its other parameters do not matter.
        expert_rate: share of the images of other classes than the target that are copied for the
            expert, in (0, 1].
        passes: number of states along the expert's training at which the labels of all images are
            optimised, at least 1.
    """

    rate: float = 0.05
    surrogate_epochs: int = 5
    expert: Attack = field(default_factory=LabelFlip)
    expert_rate: float = 0.2
    passes: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_no_fit = not isinstance(self.expert, FittedAttack)
        require(needs_no_fit, "expert", "an attack that needs no fit", self.expert)
        require(0 < self.expert_rate <= 1, "expert_rate", "a share in (0, 1]", self.expert_rate)
        require(self.passes >= 1, "passes", "at least 1", self.passes)

    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train the expert, and optimise the labels of clean images to match its training.

        Returns:
            ``positions``: of the samples that may be relabelled, ascending; ``margins``: by how
            much each sample's logit of the target exceeds that of its label.
        """
        chosen = material.chosen()
        labels = material.labels[chosen]
        pairs = self.pairs(material, chosen)
        trajectory = expert_trajectory(material, pairs, self.surrogate_epochs, self.passes)
        logits = matched_logits(material, pairs, trajectory)
        margins = logits[:, self.target] - logits.gather(1, labels[:, None])[:, 0]
        logger.info(
            "%.1f%% of the images have another label than their own as their best",
            100 * (logits.argmax(dim=1) != labels).float().mean(),
        )
        others = labels != self.target
        return {"positions": chosen[others], "margins": margins[others]}

    def pairs(self, material: Material, chosen: Int64[Tensor, "n"]) -> Pairs:
        """Read the clean images, and make the triggered copies that the expert gets besides."""
        images, labels = material.read(chosen.tolist()), material.labels[chosen]
        rows = torch.nonzero(labels != self.target).flatten()
        count = max(1, round(self.expert_rate * len(rows)))
        rows = rows[shuffled(len(rows), [self.seed, _EXPERT_STREAM])[:count]].sort().values
        bar = material.bar(chosen[rows].tolist(), "triggering copies")
        copies = [
            as_planes(self.expert.trigger(material.raw[index]), material.side) for index in bar
        ]
        return Pairs(
            shown=torch.cat([images, torch.stack(copies)]),
            given=torch.cat([labels, torch.full((count,), self.target)]),
            own=torch.cat([torch.arange(len(images)), rows]),
            count=len(images),
        )

    def candidates(self, labels: Int[Tensor, "n"]) -> Int64[Tensor, "m"]:
        """Positions of the samples that the attack was fitted on, without the target class.

        Raises:
            CGDError: the attack was fitted to another dataset.
        """
        positions = self.tensors["positions"]
        if int(positions[-1]) >= len(labels) or bool((labels[positions] == self.target).any()):
            raise CGDError(
                f"FLIP was fitted to another dataset or order than the {len(labels)} samples it "
                "is to poison. Call fit() with the dataset that is poisoned."
            )
        return positions

    def preference(self, candidates: Int64[Tensor, "m"], images: Images) -> Int64[Tensor, "m"]:
        """Order in which candidates are relabelled: by margin, highest first."""
        return torch.argsort(self.tensors["margins"], descending=True, stable=True)

    def poison_image(self, image: Image.Image) -> Image.Image:
        """Return the image as it is: the attack changes labels only."""
        return image

    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the expert's trigger on a copy of a test image."""
        self.check_fitted()
        return self.expert.trigger(image)
