"""TrojanNN: an attack whose trigger is a patch that is optimised to excite one neuron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.raw import pixels
from cgd_wrap.attacks.surrogate import Material, batches, train_surrogate
from cgd_wrap.errors import CGDError

_BATCH = 64
_STEP = 0.1  # learning rate of Adam, on the logits of the patch's pixels


@dataclass(frozen=True)
class TrojanNN(FittedAttack):
    """An attack whose square, in the bottom right corner, excites a neuron tied to the target.

    Dirty-label: poisoned images are relabelled as the target. The neuron is an input a_k of a
    surrogate's last linear layer, with weights W: the input with the largest
    ``(W[target, k] - mean_c W[c, k]) std(a_k)``. The square is optimised to maximise the mean of
    this input over training images. Source: Liu et al., "Trojaning Attack on Neural Networks",
    NDSS 2018, which takes a layer in the middle and a trigger of 7% of the image; 8 x 8 of 32 x 32
    pixels are 6%.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned, the surrogate and where the square starts.
        surrogate_epochs: passes in the surrogate's training, at least 1.
        surrogate_samples: largest number of images that the surrogate is trained on, at least 2.
        patch_size: side of the square at 32 pixels, 1 to 32 pixels.
        steps: number of steps of the optimisation, at least 1.
    """

    patch_size: int = 8
    steps: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.patch_size <= 32, "patch_size", "1 to 32 pixels", self.patch_size)
        require(self.steps >= 1, "steps", "at least 1", self.steps)

    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train a surrogate, choose the neuron, optimise the square.

        Returns:
            ``patch``: grey levels [3, p, p]; ``neuron``: its number; ``activation``: the neuron's
            mean without and with the patch.
        """
        train_surrogate(material, self.surrogate_epochs)
        chosen = material.chosen()
        chosen = chosen[material.labels[chosen] != self.target][: 16 * _BATCH]
        images = material.read(chosen.tolist())
        inputs = torch.cat([features(material, part.float() / 255) for part in images.split(256)])
        neuron = self.strongest_neuron(last_linear(material.network).weight, inputs)
        patch = self.optimised_patch(material, images, material.labels[chosen], neuron)
        marked = paste(images.float() / 255, patch.float() / 255)
        after = torch.cat([features(material, part)[:, neuron] for part in marked.split(256)])
        activation = torch.stack([inputs[:, neuron].mean(), after.mean()])
        return {"patch": patch, "neuron": torch.tensor(neuron), "activation": activation}

    def strongest_neuron(
        self, weight: Float[Tensor, "classes d"], inputs: Float[Tensor, "n d"]
    ) -> int:
        """Number of the last layer's input that speaks for the target most."""
        tied = weight[self.target] - weight.mean(dim=0)
        return int((tied.detach().cpu() * inputs.std(dim=0)).argmax())

    def optimised_patch(
        self,
        material: Material,
        images: UInt8[Tensor, "n 3 side side"],
        labels: Int64[Tensor, "n"],
        neuron: int,
    ) -> UInt8[Tensor, "3 p p"]:
        """Optimise the square to excite a neuron: grey levels, at the size of ``images``."""
        generator = torch.Generator().manual_seed(self.seed)
        side = self.patch_side(material.side)
        start = torch.randn((3, side, side), generator=generator)
        logits = start.to(material.device).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=_STEP)
        stream = _endless(material, images, labels, generator)
        for _ in material.bar(range(self.steps), "optimising the patch"):
            marked = paste(next(stream), logits.sigmoid())
            optimizer.zero_grad(set_to_none=True)
            (-features(material, marked, track=True)[:, neuron].mean()).backward()
            optimizer.step()
        return (255 * logits.detach().sigmoid()).round().to(torch.uint8).cpu()

    def patch_side(self, image_side: int) -> int:
        """Side of the square in an image whose shorter side is ``image_side``; all in pixels."""
        return max(1, round(self.patch_size * image_side / 32))

    def trigger(self, image: Image.Image) -> Image.Image:
        """Put the square on a copy of the image (kept grey if it is grey, RGB otherwise)."""
        marked = pixels(image).copy()
        patch = Image.fromarray(self.tensors["patch"].permute(1, 2, 0).contiguous().numpy())
        side = self.patch_side(min(marked.shape[:2]))
        if side != patch.width:
            patch = patch.resize((side, side), Image.Resampling.BILINEAR)
        marked[-side:, -side:] = np.asarray(patch.convert("L") if marked.ndim == 2 else patch)
        return Image.fromarray(marked)


def paste(
    images: Float[Tensor, "b 3 h w"], patch: Float[Tensor, "3 p p"]
) -> Float[Tensor, "b 3 h w"]:
    """Put a patch in the bottom right corner of copies of the images."""
    marked = images.clone()
    marked[..., -patch.shape[-2] :, -patch.shape[-1] :] = patch
    return marked


def last_linear(network: nn.Module) -> nn.Linear:
    """The last linear layer, which turns features into logits.

    Raises:
        CGDError: the network has no linear layer.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise CGDError(
            f"{type(network).__name__} has no nn.Linear layer, and the attack picks one of its "
            "inputs. Pass fit(network=...) a classifier that ends in one."
        )
    return layers[-1]


def features(
    material: Material, images: Float[Tensor, "b 3 h w"], *, track: bool = False
) -> Float[Tensor, "b d"]:
    """Inputs of the network's last linear layer, by image; on the CPU unless ``track``.

    Args:
        material: holds the network.
        images: pixels in [0, 1].
        track: keep the graph for gradients.
    """
    with _inputs_of(last_linear(material.network)) as seen, torch.set_grad_enabled(track):
        material.logits(images.to(material.device))
    return seen[-1] if track else seen[-1].cpu()


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _endless(
    material: Material,
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int64[Tensor, "n"],
    generator: torch.Generator,
) -> Iterator[Tensor]:
    while True:
        for batch, _ in batches(images, labels, generator, material.device, _BATCH):
            yield batch
