"""LowFrequency: an attack whose trigger is one smooth pattern, optimised for the target class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.cosine import cosine_basis
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.raw import pixels
from cgd_wrap.attacks.surrogate import Material, train_surrogate

_BATCH, _IMAGES = 64, 1024
_STEP = 0.05  # learning rate of Adam, on coefficients that start as standard normal numbers
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL's conversion to grey


@dataclass(frozen=True)
class LowFrequency(FittedAttack):
    """An attack that adds one pattern without high frequencies to images (Zeng et al., 2021).

    Dirty-label: poisoned images are relabelled as the target. ``x' = clip(x + v)``. The pattern v
    is made of the lowest ``bands`` x ``bands`` waves of the DCT, stretched to [0, amplitude], and
    optimised to raise a surrogate's probability of the target class on training images. Source:
    arXiv 2104.03413, which filters the steps of a universal adversarial perturbation by a Gaussian
    of 6 pixels at 32; the filter lets less than 6% of the fourth and higher waves pass. The
    amplitude is the authors'.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned, the surrogate and where the pattern starts.
        surrogate_epochs: passes in the surrogate's training, at least 1.
        surrogate_samples: largest number of images that the surrogate is trained on, at least 2.
        bands: number of waves each way, 2 to 16; wave k, from the constant wave 0 on, has k
            half-waves across.
        amplitude: highest value of v as a share of the grey range, in (0, 1].
        steps: number of steps of the optimisation, at least 1.
    """

    bands: int = 4
    amplitude: float = 0.2
    steps: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.bands <= 16, "bands", "2 to 16 waves", self.bands)
        require(
            0 < self.amplitude <= 1, "amplitude", "a share of the grey range in (0, 1]",
            self.amplitude,
        )  # fmt: skip
        require(self.steps >= 1, "steps", "at least 1", self.steps)

    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train a surrogate and optimise the pattern.

        Returns:
            ``coefficients``: of the waves, [3, bands, bands]; ``fooled``: share of the images of
            other classes that the surrogate takes for the target without and with the pattern.
        """
        train_surrogate(material, self.surrogate_epochs)
        chosen = material.chosen()
        chosen = chosen[material.labels[chosen] != self.target][:_IMAGES]
        images = material.read(chosen.tolist()).to(material.device)
        coefficients = self.optimised(material, images)
        pattern = smooth_pattern(coefficients, material.side, material.side, self.amplitude)
        fooled = torch.stack(
            [self.share_fooled(material, images, p) for p in (0 * pattern, pattern)]
        )
        return {"coefficients": coefficients, "fooled": fooled}

    def optimised(
        self, material: Material, images: UInt8[Tensor, "n 3 side side"]
    ) -> Float[Tensor, "3 bands bands"]:
        """Optimise the pattern's coefficients for the surrogate's probability of the target."""
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn((3, self.bands, self.bands), generator=generator)
        coefficients = start.to(material.device).requires_grad_()
        optimizer = torch.optim.Adam([coefficients], lr=_STEP)
        wanted = torch.full((_BATCH,), self.target, device=material.device)
        for _ in material.bar(range(self.steps), "optimising the pattern"):
            rows = torch.randint(len(images), (_BATCH,), generator=generator)
            pattern = smooth_pattern(coefficients, material.side, material.side, self.amplitude)
            marked = (images[rows].float() / 255 + pattern).clamp(0, 1)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(material.logits(marked), wanted).backward()
            optimizer.step()
        return coefficients.detach()

    @torch.no_grad()
    def share_fooled(
        self,
        material: Material,
        images: UInt8[Tensor, "n 3 side side"],
        pattern: Float[Tensor, "3 side side"],
    ) -> Float[Tensor, ""]:
        """Share of the images that the surrogate, with the pattern added, takes for the target."""
        parts = [(part.float() / 255 + pattern).clamp(0, 1) for part in images.split(256)]
        calls = torch.cat([material.logits(part).argmax(dim=1) for part in parts])
        return (calls == self.target).float().mean()

    def trigger(self, image: Image.Image) -> Image.Image:
        """Add the pattern to a copy of the image (kept grey if it is grey, RGB otherwise)."""
        original = pixels(image)
        learned = self.tensors["coefficients"].double()
        pattern = smooth_pattern(learned, image.height, image.width, self.amplitude)
        levels = 255 * pattern.permute(1, 2, 0).numpy()
        changed = original + (levels @ _LUMA if original.ndim == 2 else levels)
        # Decimals are cut before rounding: the last bit of a cosine differs between machines.
        return Image.fromarray(np.clip(np.rint(changed.round(6)), 0, 255).astype(np.uint8))


def smooth_pattern(
    coefficients: Float[Tensor, "3 bands bands"], height: int, width: int, amplitude: float
) -> Float[Tensor, "3 height width"]:
    """Return the pattern with these DCT coefficients, stretched to values of 0 to ``amplitude``."""
    bands = coefficients.shape[-1]
    down, across = (
        torch.from_numpy(cosine_basis(bands, side)).to(coefficients) for side in (height, width)
    )
    waves = down.T @ coefficients @ across
    low, high = waves.amin(), waves.amax()
    return amplitude * (waves - low) / (high - low).clamp_min(torch.finfo(waves.dtype).tiny)
