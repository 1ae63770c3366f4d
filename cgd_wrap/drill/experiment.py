"""An experiment on a data set: poison it, train a victim, repair the victim, and measure.

The demo, the drill and the tables of results are made of such experiments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd_wrap.attacks import Attack, PoisonedDataset
from cgd_wrap.clip.several import Clips
from cgd_wrap.config import CGDConfig
from cgd_wrap.data.class_names import find_class_names
from cgd_wrap.data.layout import find_layout
from cgd_wrap.drill.outcome import Outcome
from cgd_wrap.drill.training import Recipe, train_classifier
from cgd_wrap.guard import CGDGuard
from cgd_wrap.metrics import BackdoorFigures, detection_figures, evaluate_backdoor
from cgd_wrap.models.small_resnet import small_resnet
from cgd_wrap.models.weights import fresh_copy
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import seeded

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Experiment:
    """A data set on which victims are trained and repaired.

    Args:
        train: raw training images (no transform), clean.
        test: raw test images (no transform).
        train_transform: PIL image -> tensor, for training; may augment.
        test_transform: PIL image -> tensor, for measuring.
        clip: a CLIP or several, as for :class:`CGDGuard`.
        architecture: network of which victims are fresh copies. Default: :func:`small_resnet`.
        train_model: trains a model in place on a dataset of (tensor, label) tuples. Default:
            :func:`train_classifier` by the recipe.
        recipe: recipe of the victims' training.
        seed: seed of initialisation and order.
        num_workers: number of worker processes of data loaders.
        progress: draw progress bars.
        accelerator: accelerator of the guard; its precision should be the recipe's.
    """

    train: Any
    test: Any
    train_transform: Any
    test_transform: Any
    clip: Clips
    architecture: nn.Module | None = None
    train_model: Callable[[nn.Module, Dataset[Any]], object] | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    num_workers: int = 0
    progress: bool = True
    accelerator: Accelerator | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the training set's classes."""
        names = find_class_names(self.train)
        assert names is not None
        return names

    def network(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        """Make a victim's network, freshly initialised or with given weights."""
        if self.architecture is None:
            with seeded(self.seed):
                model: nn.Module = small_resnet(len(self.class_names), self.recipe.widths)
        else:
            model = fresh_copy(self.architecture, self.seed)
        if state is not None:
            model.load_state_dict(state)
        return model.to(Runtime.of(self.accelerator).device)

    def train_victim(self, dataset: Dataset[Any], title: str) -> nn.Module:
        """Train a network on a data set, without any defence."""
        model = self.network()
        if self.train_model is not None:
            with seeded(self.seed):
                self.train_model(model, dataset)
            return model.eval()
        train_classifier(
            model, dataset, self.recipe, seed=self.seed, title=title,
            num_workers=self.num_workers, progress=self.progress,
        )  # fmt: skip
        return model

    def poisoned(self, attack: Attack) -> PoisonedDataset:
        """Poison the training set by an attack; images have the transform for training."""
        return attack.poison(self.train, self.train_transform)

    def clean(self) -> Dataset[Any]:
        """The training set without poison; images have the transform for training."""
        return transformed(self.train, self.train_transform)

    def measure(self, model: nn.Module, attack: Attack) -> BackdoorFigures:
        """Measure a model on the test set, with and without the trigger of an attack."""
        untriggered = transformed(self.test, self.test_transform)
        triggered = attack.triggered(self.test, self.test_transform)
        return evaluate_backdoor(model, untriggered, triggered, attack.target)

    def steady(self, attack: Attack | None) -> Dataset[Any]:
        """The training set, poisoned or clean; images have the transform for measuring."""
        if attack is None:
            return transformed(self.train, self.test_transform)
        return attack.poison(self.train, self.test_transform)

    def guard(
        self,
        attack: Attack | None,
        victim: nn.Module,
        config: CGDConfig,
        *,
        cache_dir: str | Path | None = None,
    ) -> CGDGuard:
        """Make a guard, not scanned yet, of the training set under an attack or without one."""
        return CGDGuard(
            victim, self.clean() if attack is None else self.poisoned(attack), self.class_names,
            clip=self.clip, config=config, cache_dir=cache_dir, accelerator=self.accelerator,
            eval_dataset_view=self.steady(attack), num_workers=self.num_workers,
            progress=self.progress,
        )  # fmt: skip

    def defend(
        self,
        attack: Attack,
        victim: nn.Module,
        clean_trained: nn.Module,
        config: CGDConfig,
        *,
        cache_dir: str | Path | None = None,
    ) -> Outcome:
        """Scan the poisoned training set, repair the victim in place, and measure.

        Args:
            attack: the attack that poisoned the victim's training set.
            victim: a model trained on :meth:`poisoned`.
            clean_trained: a network like the victim, trained on :meth:`clean`.
            config: configuration of the guard.
            cache_dir: folder where the guard keeps its scan.
        """
        seconds: dict[str, float] = {}
        before = self.measure(victim, attack)
        guard = self.guard(attack, victim, config, cache_dir=cache_dir)
        with timed(seconds, "scan"):
            guard.scan()
        with timed(seconds, "repair"), seeded(self.seed):
            guard.fit()
        poisoned = torch.zeros(len(guard.targets), dtype=torch.bool)
        poisoned[guard.base.poisoned] = True
        return Outcome(
            attack={
                "attack": type(attack).__name__,
                "target": attack.target,
                "rate": attack.rate,
            },
            before=before,
            after=self.measure(victim, attack),
            clean_trained=self.measure(clean_trained, attack),
            detection=detection_figures(guard.entropy_map, guard.split, poisoned),
            split=guard.split.counts(),
            suspected=guard.suspected_classes,
            estimated_rate=guard.poison_estimate.rate,
            zero_shot_agreement=guard.result.agreement,
            seconds=seconds,
            poisoned=poisoned,
            guard=guard,
        )


class _Transformed(Dataset[Any]):
    """Raw (image, label) samples, whose images go through a transform."""

    def __init__(self, dataset: Any, transform: Any) -> None:
        self.dataset, self.transform, self.layout = dataset, transform, find_layout(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample = self.dataset[index]
        image = self.layout.image_of(sample).convert("RGB")
        return self.transform(image), int(self.layout.label_of(sample))


def transformed(dataset: Any, transform: Any) -> Dataset[Any]:
    """Wrap a raw data set of tuples or dicts to give (transformed image, label) tuples."""
    return _Transformed(dataset, transform)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write the wall-clock seconds of the block into ``seconds[stage]``."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
