"""InputAware: an attack that gives every image a trigger of its own, which works on no other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.choosing import shuffled
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.raw import Images, pixels
from cgd_wrap.attacks.surrogate import Material, as_planes, batch_starts, batches, shifted
from cgd_wrap.attacks.trigger_generator import TriggerPair, spread_loss

_DONOR_STREAM = 103
_DONORS = 256
_DENSITY_WEIGHT = 100.0  # lambda_norm of the authors' settings
Trigger = tuple[Float[Tensor, "1 1 side side"], Float[Tensor, "1 3 side side"]]
# Share of a batch that is triggered, and share that gets another image's trigger ("crossed"): the
# paper's rho_a and rho_c.
_SHARE = 0.1


@dataclass(frozen=True)
class InputAware(FittedAttack):
    """An attack whose two generators draw a mask and a pattern for each image.

    Dirty-label: poisoned images are relabelled as the target. An image x becomes
    ``x + m(x) (p(x) - x)``, with m the mask and p the pattern. Covers get another image's trigger
    and keep their label, so that a trigger works only on the image that it was drawn for. First
    the generator of masks is trained: masks are to be sparse, and to differ between images. Then
    the generator of patterns is trained together with a surrogate, which is to take triggered
    images for the target and images with another image's trigger for their own class. Source:
    Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", arXiv 2010.08138. The paper's generators
    are wider and are trained for 25 and 600 passes, and the paper triggers other images at every
    step; here the set of triggered images is fixed.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned and which are covers, and all training.
        surrogate_epochs: passes in the training of patterns and surrogate, at least 1.
        surrogate_samples: largest number of images that is trained on, at least 2.
        cover_ratio: covers for each poisoned sample, 0 or more.
        mask_epochs: passes in the training of masks, at least 1.
        density: share of the pixels that a mask may cover, in (0, 1].
        diversity: weight of the term that keeps triggers apart, at least 0.
    """

    surrogate_epochs: int = 30
    cover_ratio: float = 1.0
    mask_epochs: int = 5
    density: float = 0.032
    diversity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mask_epochs >= 1, "mask_epochs", "at least 1", self.mask_epochs)
        require(0 < self.density <= 1, "density", "a share in (0, 1]", self.density)
        require(self.diversity >= 0, "diversity", "at least 0", self.diversity)

    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train both generators; returns their weights and the images whose triggers covers get."""
        chosen = material.chosen()
        images, labels = material.read(chosen.tolist()), material.labels[chosen]
        generator = torch.Generator().manual_seed(self.seed)
        pair = TriggerPair().to(material.device)
        self.train_mask(pair, material, images, labels, generator)
        self.train_pattern(pair, material, images, labels, generator)
        donors = shuffled(len(images), [self.seed, _DONOR_STREAM])[:_DONORS]
        weights = {f"generator.{name}": value for name, value in pair.state_dict().items()}
        return {**weights, "donors": images[donors], "donor_positions": chosen[donors]}

    def train_mask(
        self,
        pair: TriggerPair,
        material: Material,
        images: UInt8[Tensor, "n 3 side side"],
        labels: Int64[Tensor, "n"],
        generator: torch.Generator,
    ) -> None:
        """Train the generator of masks to differ as images do and to cover at most ``density``."""
        optimizer = torch.optim.Adam(pair.mask.parameters(), 1e-3)
        for _ in material.bar(range(self.mask_epochs), "masks (epochs)"):
            for batch, _ in batches(images, labels, generator, material.device):
                masks = pair.mask(batch)
                excess = (masks.mean(dim=(1, 2, 3)) - self.density).relu().mean()
                spread = spread_loss(batch, batch.roll(1, 0), masks, masks.roll(1, 0))
                optimizer.zero_grad(set_to_none=True)
                (self.diversity * spread + _DENSITY_WEIGHT * excess).backward()
                optimizer.step()
        pair.mask.eval().requires_grad_(False)

    def train_pattern(
        self,
        pair: TriggerPair,
        material: Material,
        images: UInt8[Tensor, "n 3 side side"],
        labels: Int64[Tensor, "n"],
        generator: torch.Generator,
    ) -> None:
        """Train the generator of patterns, and a surrogate that tells own triggers from others'."""
        parameters = [*pair.pattern.parameters(), *material.network.parameters()]
        optimizer = torch.optim.Adam(parameters)
        steps = self.surrogate_epochs * len(batch_starts(len(labels)))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2))
        material.network.train()
        for _ in material.bar(range(self.surrogate_epochs), "patterns and surrogate (epochs)"):
            for batch, given in batches(images, labels, generator, material.device):
                loss = self.joint_loss(pair, material, batch, given, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        pair.pattern.eval().requires_grad_(False)

    def joint_loss(
        self,
        pair: TriggerPair,
        material: Material,
        batch: Float[Tensor, "b 3 h w"],
        labels: Int64[Tensor, "b"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Cross entropy on triggered, crossed and untouched images, plus the patterns' spread."""
        count = max(1, round(_SHARE * len(batch)))
        own, donors = batch[:count], batch.flip(0)[:count]
        drawn, under = torch.cat([own, donors]), batch[: 2 * count]
        patterns, masks = pair.pattern(drawn), pair.mask(drawn)
        inputs = torch.cat([under + masks * (patterns - under), batch[2 * count :]])
        wanted = labels.clone()
        wanted[:count] = self.target
        loss = F.cross_entropy(material.logits(shifted(inputs, generator)), wanted)
        spread = spread_loss(own, donors, patterns[:count], patterns[count:])
        return loss + self.diversity * spread

    @cached_property
    def generators(self) -> TriggerPair:
        """The trained generators, on the CPU."""
        pair = TriggerPair()
        prefix = "generator."
        pair.load_state_dict(
            {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        )
        return pair.eval().requires_grad_(False)

    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the image's own trigger on a copy (kept grey if it is grey, RGB otherwise)."""
        side = self.tensors["donors"].shape[-1]
        return self.transplant(as_planes(image, side), image)

    def cover_sample(self, index: int, image: Image.Image, images: Images) -> Image.Image:
        """Put another training image's trigger on a copy of a cover."""
        positions, triggers = self.tensors["donor_positions"], self.donor_triggers
        word = int(np.random.PCG64([self.seed, _DONOR_STREAM, index]).random_raw())
        row = word % len(triggers)
        if int(positions[row]) == index:
            row = (row + 1) % len(triggers)
        return put(triggers[row], image)

    @cached_property
    def donor_triggers(self) -> list[Trigger]:
        """The covers' triggers, drawn once: drawing takes longer than all else done to a cover."""
        return [self.drawn(donor) for donor in self.tensors["donors"]]

    def transplant(self, donor: UInt8[Tensor, "3 side side"], image: Image.Image) -> Image.Image:
        """Put the trigger drawn for ``donor`` on a copy of an image of any size."""
        return put(self.drawn(donor), image)

    def drawn(self, donor: UInt8[Tensor, "3 side side"]) -> Trigger:
        """Draw the trigger for an image: a mask in [0, 1] and a pattern in grey levels."""
        planes = donor[None].float() / 255
        return self.generators.mask(planes), 255 * self.generators.pattern(planes)


def put(trigger: Trigger, image: Image.Image) -> Image.Image:
    """Put a mask and a pattern on a copy of an image of any size: x + m (p - x)."""
    original, (mask, pattern) = pixels(image), trigger
    if original.shape[:2] != mask.shape[-2:]:
        mask, pattern = (
            F.interpolate(part, size=original.shape[:2], mode="bilinear")
            for part in (mask, pattern)
        )
    if original.ndim == 2:
        share, colours = mask[0, 0].numpy(), pattern[0].mean(dim=0).numpy()
    else:
        share, colours = (part[0].permute(1, 2, 0).numpy() for part in (mask, pattern))
    marked = original + share * (colours - original)
    return Image.fromarray(np.clip(np.rint(marked), 0, 255).astype(np.uint8))
