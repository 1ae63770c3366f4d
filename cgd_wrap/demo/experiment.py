"""Poison a data set, train a victim, repair it, measure: what the demo and the tables do."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cgd_wrap.attacks import Attack
from cgd_wrap.clip import ZeroShot
from cgd_wrap.config import CGDConfig
from cgd_wrap.demo.network import small_resnet
from cgd_wrap.guard import CGDGuard
from cgd_wrap.metrics import (
    BackdoorFigures,
    DetectionFigures,
    detection_figures,
    evaluate_backdoor,
)
from cgd_wrap.suspicious import seeded

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a victim is trained: SGD with Nesterov momentum 0.9 under a one-cycle schedule.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples a step.
        max_rate: highest learning rate of the cycle.
        weight_decay: of SGD.
        widths: channels of :func:`small_resnet`.
        bf16: compute in bfloat16 under autocast; the weights stay fp32.
    """

    epochs: int = 12
    batch_size: int = 256
    max_rate: float = 0.2
    weight_decay: float = 5e-4
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    bf16: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to.

    Attributes:
        before: figures of the victim.
        after: figures of the repaired victim.
        clean_trained: figures of the same network trained on clean data: its clean accuracy is
            what a repair is held against, its attack success rate is the natural error, its
            robust accuracy the ceiling.
        detection: how well the split found the poison.
        split: number of samples in each part.
        zero_shot_agreement: share of the given labels that are CLIP's first choice.
        seconds: by stage.
        guard: the guard itself.
    """

    before: BackdoorFigures
    after: BackdoorFigures
    clean_trained: BackdoorFigures
    detection: DetectionFigures
    split: dict[str, int]
    zero_shot_agreement: float
    seconds: dict[str, float]
    guard: CGDGuard = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON values; rates in [0, 1], times in seconds."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "natural_rate": self.after.natural_rate,
            "clean_trained": self.clean_trained.as_dict(),
            "clean_trained_accuracy": self.clean_trained.clean_accuracy,
            "ra_ceiling": self.clean_trained.robust_accuracy,
            "split": self.split,
            "detection": self.detection.as_dict(),
            "zero_shot_agreement": self.zero_shot_agreement,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }


@dataclass
class Experiment:
    """One data set, on which victims are trained and repaired.

    Args:
        train: raw training images (no transform), clean.
        test: raw test images (no transform).
        train_transform: PIL image -> tensor, for training; may augment.
        test_transform: PIL image -> tensor, for measuring.
        clip: as for :class:`CGDGuard`.
        recipe: of the victims.
        seed: of initialisation and order.
        progress: draw progress bars.
        accelerator: of the guard; its precision should be the recipe's.
    """

    train: Any
    test: Any
    train_transform: Any
    test_transform: Any
    clip: str | ZeroShot
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    progress: bool = True
    accelerator: Accelerator | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the training set."""
        from cgd_wrap.views.class_names import find_class_names

        names = find_class_names(self.train)
        assert names is not None
        return len(names)

    def network(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        """A victim's network: freshly initialised, or with given weights."""
        with seeded(self.seed):
            model = small_resnet(self.num_classes, self.recipe.widths)
        if state is not None:
            model.load_state_dict(state)
        return model

    def train_victim(self, dataset: Dataset[Any], title: str) -> nn.Module:
        """Train a network on a data set, without any defence."""
        model = self.network()
        recipe, progress = self.recipe, self.progress
        train_classifier(model, dataset, recipe, seed=self.seed, title=title, progress=progress)
        return model

    def views(self, attack: Attack) -> tuple[Any, Any]:
        """The untriggered and the triggered test set."""
        return (
            _Transformed(self.test, self.test_transform),
            attack.triggered(self.test, self.test_transform),
        )

    def measure(self, model: nn.Module, attack: Attack) -> BackdoorFigures:
        """Figures of a model under an attack, on the test set."""
        return evaluate_backdoor(model, *self.views(attack), attack.target)

    def defend(
        self,
        attack: Attack,
        victim: nn.Module,
        clean_trained: nn.Module,
        config: CGDConfig,
        *,
        cache_dir: str | Path | None = None,
    ) -> Outcome:
        """Scan the poisoned set and repair the victim, which is changed in place.

        Args:
            attack: that the victim was trained under.
            victim: a model trained on ``attack.poison(train)``.
            clean_trained: the same network trained on ``train``.
            config: of the guard.
            cache_dir: of the guard.
        """
        seconds: dict[str, float] = {}
        poisoned = attack.poison(self.train, self.train_transform)
        steady = attack.poison(self.train, self.test_transform)
        before = self.measure(victim, attack)
        with _timed(seconds, "scan"):
            guard = CGDGuard(
                victim, poisoned, clip=self.clip, config=config, cache_dir=cache_dir,
                eval_dataset_view=steady, progress=self.progress, accelerator=self.accelerator,
            ).scan()  # fmt: skip
        with _timed(seconds, "repair"), seeded(self.seed):
            guard.fit()
        is_poisoned = torch.zeros(len(poisoned), dtype=torch.bool)
        is_poisoned[poisoned.poisoned] = True
        return Outcome(
            before=before,
            after=self.measure(victim, attack),
            clean_trained=self.measure(clean_trained, attack),
            detection=detection_figures(guard.entropy_map, guard.split, is_poisoned),
            split=guard.split.counts(),
            zero_shot_agreement=guard.result.agreement,
            seconds=seconds,
            guard=guard,
        )


def train_classifier(
    model: nn.Module,
    dataset: Dataset[Any],
    recipe: Recipe,
    *,
    seed: int,
    title: str,
    progress: bool = True,
) -> None:
    """An ordinary training loop, as a user may have one before this library comes in."""
    generator = torch.Generator().manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=recipe.batch_size, shuffle=True, drop_last=True, generator=generator
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.max_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay,
    )  # fmt: skip
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.max_rate, steps)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    with seeded(seed), tqdm(total=steps, desc=title, unit="step", disable=not progress) as bar:
        for _ in range(recipe.epochs):
            for images, labels in loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                    outputs = model(images)
                loss = F.cross_entropy(outputs.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    model.eval()


class _Transformed(Dataset[Any]):
    """Raw (image, label) samples with a transform on their images."""

    def __init__(self, dataset: Any, transform: Any) -> None:
        from cgd_wrap.views.layout import find_layout

        self.dataset, self.transform, self.layout = dataset, transform, find_layout(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample = self.dataset[index]
        image = self.layout.image_of(sample).convert("RGB")
        return self.transform(image), int(self.layout.label_of(sample))


def transformed(dataset: Any, transform: Any) -> Dataset[Any]:
    """A raw data set of ``(image, label)`` or dicts, as tuples with a transform on the image."""
    return _Transformed(dataset, transform)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
