"""The surrogate, a classifier of the attacker's own: its training data and its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cgd_wrap.attacks.choosing import shuffled
from cgd_wrap.attacks.raw import Images, pixels, quiet
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.outputs import logits_of

logger = escaped_logger(__name__)

_SAMPLE_STREAM = 102
Normalise = Callable[[Tensor], Tensor]
StepT = TypeVar("StepT")


@dataclass(frozen=True)
class Material:
    """The data and settings that an attack is fitted with, and an untrained network.

    Attributes:
        raw: the images of the data set.
        labels: class of every image.
        num_classes: number of classes.
        side: height and width that images are resized to, pixels.
        network: the untrained network; everything is computed on its device.
        normalise: makes the network's input from pixels in [0, 1], differentiable.
        seed: decides every random choice.
        limit: largest number of images that are trained on.
        progress: draw progress bars.
    """

    raw: Images
    labels: Int64[Tensor, "n"]
    num_classes: int
    side: int
    network: nn.Module
    normalise: Normalise
    seed: int
    limit: int
    progress: bool

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of the network for pixels in [0, 1]."""
        out: Tensor = logits_of(self.network(self.normalise(images)))
        return out.float()

    def chosen(self) -> Int64[Tensor, "m"]:
        """Positions of the samples to train on: all, or ``limit`` seeded ones; ascending."""
        order = shuffled(len(self.labels), [self.seed, _SAMPLE_STREAM])
        return order[: self.limit].sort().values

    def read(self, positions: Sequence[int]) -> UInt8[Tensor, "k 3 side side"]:
        """Read the images at some positions at the common size: grey levels, on the CPU."""
        bar = self.bar(positions, "reading images")
        return torch.stack([as_planes(self.raw[index], self.side) for index in bar])

    def bar(self, steps: Sequence[StepT], title: str) -> tqdm[StepT]:
        """A progress bar over ``steps``."""
        return tqdm(steps, desc=title, delay=2.0, disable=quiet() if self.progress else True)


def as_planes(image: Image.Image, side: int) -> UInt8[Tensor, "3 side side"]:
    """Convert an image to RGB and resize it to a square of ``side`` pixels: grey levels."""
    rgb = Image.fromarray(pixels(image)).convert("RGB")
    if rgb.size != (side, side):
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def common_side(raw: Images) -> int:
    """Median of the shorter sides of some images, kept in 16 to 64 pixels."""
    places = np.linspace(0, len(raw) - 1, min(32, len(raw))).astype(int).tolist()
    return min(64, max(16, int(np.median([min(raw[place].size) for place in places]))))


def centred(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Scale pixels from [0, 1] to [-1, 1]."""
    return 2 * images - 1


def train_surrogate(material: Material, epochs: int) -> nn.Module:
    """Train the material's network in place: Adam, a one-cycle schedule, randomly shifted images.

    Args:
        material: network, images and labels.
        epochs: passes over the chosen images.

    Returns:
        The network in eval mode, without gradients for its weights.
    """
    chosen = material.chosen()
    images, labels = material.read(chosen.tolist()), material.labels[chosen]
    steps = epochs * len(batch_starts(len(labels)))
    optimizer = torch.optim.Adam(material.network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, max(steps, 2))
    generator = torch.Generator().manual_seed(material.seed)
    material.network.train()
    right = 0
    for epoch in material.bar(range(epochs), "surrogate (epochs)"):
        for batch, given in batches(images, labels, generator, material.device):
            logits = material.logits(shifted(batch, generator))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, given).backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == given).sum()) if epoch == epochs - 1 else 0
    logger.info("the surrogate classifies %.1f%% of its images right", 100 * right / len(labels))
    return material.network.eval().requires_grad_(False)


def batches(
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int64[Tensor, "n"],
    generator: torch.Generator,
    device: torch.device,
    size: int = 128,
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, "b"]]]:
    """Yield all samples in random order, by ``size`` or a few more: pixels in [0, 1] and labels."""
    order = torch.randperm(len(labels), generator=generator)
    starts = batch_starts(len(labels), size)
    for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        rows = order[start:end]
        yield images[rows].to(device).float() / 255, labels[rows].to(device)


def batch_starts(count: int, size: int = 128) -> list[int]:
    """Positions at which batches begin; a last batch below half the size joins the one before."""
    # Batch normalisation cannot train on a batch of one image.
    return list(range(0, max(count - size // 2, 1), size))


def shifted(
    images: Float[Tensor, "b channels h w"], generator: torch.Generator
) -> Float[Tensor, "b channels h w"]:
    """Shift all images of a batch by up to a sixteenth of their side each way, edges repeated."""
    reach = max(1, images.shape[-1] // 16)
    down, right = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    return padded[..., down : down + images.shape[-2], right : right + images.shape[-1]]
