"""An ordinary training loop without a defence, as users have before they add this library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cgd_wrap.models.finite import TrainingWatch
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.randomness import seeded


@dataclass(frozen=True)
class Recipe:
    """How a victim is trained: SGD with Nesterov momentum 0.9 under a one-cycle schedule.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples per step.
        max_rate: highest learning rate of the cycle.
        weight_decay: weight decay of SGD.
        widths: channels of :func:`small_resnet`, if no architecture is given.
        bf16: compute in bfloat16 under autocast; the weights stay fp32.
    """

    epochs: int = 12
    batch_size: int = 256
    max_rate: float = 0.2
    weight_decay: float = 5e-4
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    bf16: bool = False


class Batches(Protocol):
    """The part of a loader that a training loop uses: (images, labels) batches and their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def train_classifier(
    model: nn.Module,
    dataset: Dataset[Any],
    recipe: Recipe,
    *,
    seed: int,
    title: str,
    num_workers: int = 0,
    progress: bool = True,
) -> None:
    """Train a model in place, on the device where it is, without any defence.

    Args:
        model: image batch -> logits, or an output with ``.logits``.
        dataset: (image tensor, label) tuples.
        recipe: recipe of the training.
        seed: seed of order, augmentation and dropout.
        title: title of the progress bar.
        num_workers: number of worker processes of the loader.
        progress: draw a progress bar.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=min(recipe.batch_size, len(dataset)),  # type: ignore[arg-type]
        shuffle=True, drop_last=True, num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    train_on_batches(model, loader, recipe, seed=seed, title=title, progress=progress)


def train_on_batches(
    model: nn.Module,
    loader: Batches,
    recipe: Recipe,
    *,
    seed: int,
    title: str,
    progress: bool = True,
) -> None:
    """Train a model as :func:`train_classifier` does, on the batches of a given loader.

    Raises:
        TrainingDivergedError: a weight of the trained model is NaN or infinite.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.max_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay,
    )  # fmt: skip
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.max_rate, steps)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    watch = TrainingWatch(model, device, steps, recipe.epochs)
    with seeded(seed), tqdm(total=steps, desc=title, unit="step", disable=not progress) as bar:
        for _ in range(recipe.epochs):
            for images, labels in loader:
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                    outputs = logits_of(model(images.to(device)))
                loss = F.cross_entropy(outputs.float(), labels.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                watch.see(loss)
                bar.update()
    watch.check(model)
    model.eval()
