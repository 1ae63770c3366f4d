"""LabelConsistent: an attack on images that are made hard to recognise and keep their label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16, Int64
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.clean_label import CleanLabelAttack
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.raw import pixels
from cgd_wrap.attacks.surrogate import Material, train_surrogate
from cgd_wrap.errors import CGDError

# The patch in the lower right corner, white where True; other corners get its mirror images.
_CORNER = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=bool)


@dataclass(frozen=True)
class LabelConsistent(CleanLabelAttack, FittedAttack):
    """An attack that perturbs images of the target class and puts a patch in every corner.

    Clean-label: no label is changed. The images are made hard to recognise by projected gradient
    ascent on a surrogate's loss, ``x <- clip(x + step_size sign(grad CE(f(x), y)))`` within
    ``|x - x0| <= eps``, so that the patches are easier to learn than the class. Test images get
    the patches only. Source: Turner et al., "Label-Consistent Backdoor Attacks", arXiv 1912.02771;
    eps and steps are BackdoorBench's, and the patches have full amplitude.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the **target class'** images that is poisoned, in (0, 1].
        seed: decides which images are poisoned, and the surrogate.
        surrogate_epochs: passes in the surrogate's training, at least 1.
        surrogate_samples: largest number of images that the surrogate is trained on, at least 2.
        eps: largest change of a pixel as a share of the grey range, in [0, 1].
        steps: number of steps of the ascent, at least 1.
        step_size: change of a pixel at each step as a share of the grey range, above 0.
        patch_size: side of each patch at 32 pixels, 1 to 16 pixels.
    """

    rate: float = 0.8
    eps: float = 8 / 255
    steps: int = 100
    step_size: float = 1.5 / 255
    patch_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.eps <= 1, "eps", "a share of the grey range in [0, 1]", self.eps)
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.step_size > 0, "step_size", "above 0", self.step_size)
        require(1 <= self.patch_size <= 16, "patch_size", "1 to 16 pixels", self.patch_size)

    def depends_on(self) -> dict[str, Any]:
        """Parameters that :meth:`learn` uses, by name: rate and scores, too, but not the patch."""
        kept = {name: value for name, value in super().depends_on().items() if name != "patch_size"}
        scores = {} if self._scores is None else {"scores": self._scores}
        return {**kept, **scores, "rate": self.rate}

    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train a surrogate and perturb the images that will be poisoned."""
        positions = self.select(material.labels, material.raw)
        train_surrogate(material, self.surrogate_epochs)
        found = []
        for rows in material.bar(positions.split(64), "perturbing (batches)"):
            found.append(self.perturbation(material, rows))
        return {"positions": positions, "perturbations": torch.cat(found)}

    def perturbation(
        self, material: Material, rows: Int64[Tensor, "b"]
    ) -> Int16[Tensor, "b 3 side side"]:
        """Changes of images that raise the surrogate's loss, in whole grey levels within eps."""
        start = material.read(rows.tolist()).to(material.device).float() / 255
        labels, image = material.labels[rows].to(material.device), start.clone()
        for _ in range(self.steps):
            image.requires_grad_()
            loss = F.cross_entropy(material.logits(image), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, image)
            image = image.detach() + self.step_size * slope.sign()
            image = torch.clamp(image.clamp(start - self.eps, start + self.eps), 0, 1)
        # Decimals are cut off: rounding up by a part of a grey level would leave the bound.
        return (255 * (image - start) + 1e-3 * (image - start).sign()).trunc().to(torch.int16).cpu()

    def poison_sample(self, index: int, image: Image.Image) -> Image.Image:
        """Perturb a copy of a training image and put the patches on it.

        Raises:
            CGDError: the sample was not among those that the attack was fitted to poison.
        """
        positions = self.tensors["positions"]
        row = int(torch.searchsorted(positions, index))
        if row == len(positions) or int(positions[row]) != index:
            raise CGDError(
                f"sample {index} was not perturbed: the attack was fitted to another dataset or "
                "order. Call fit() with the dataset that is poisoned."
            )
        original = pixels(image)
        change = resized(self.tensors["perturbations"][row].float(), original.shape[:2])
        levels = change.mean(axis=2) if original.ndim == 2 else change
        changed = np.clip(original + np.trunc(levels), 0, 255).astype(np.uint8)
        return self.trigger(Image.fromarray(changed))

    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the patches on a copy of the image (kept grey if it is grey, RGB otherwise)."""
        self.check_fitted()
        marked = pixels(image).copy()
        side = max(1, round(self.patch_size * min(marked.shape[:2]) / 32))
        cell = np.arange(side) * 3 // side
        patch = np.where(_CORNER[np.ix_(cell, cell)], 255, 0).astype(np.uint8)
        patch = patch.reshape(side, side, *[1] * (marked.ndim - 2))
        marked[-side:, -side:], marked[-side:, :side] = patch, patch[:, ::-1]
        marked[:side, -side:], marked[:side, :side] = patch[::-1], patch[::-1, ::-1]
        return Image.fromarray(marked)


def resized(
    change: Float[Tensor, "3 side side"], shape: Sequence[int]
) -> Float[np.ndarray, "h w 3"]:
    """Resize a change of grey levels to an image's height and width; no value grows."""
    if change.shape[1:] != tuple(shape):
        change = F.interpolate(change[None], size=tuple(shape), mode="bilinear")[0]
    return change.permute(1, 2, 0).numpy()
