"""A drill on a guard's data set: would the defence hold for its classes and its CLIP?"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset

from cgd_wrap.attacks import Attack, FittedAttack
from cgd_wrap.attacks.catalogue import attack_of
from cgd_wrap.data import RawImages, find_layout
from cgd_wrap.data.labels import read_labels
from cgd_wrap.drill.experiment import Experiment
from cgd_wrap.drill.outcome import Outcome
from cgd_wrap.drill.pictures import Pictures, ToInput
from cgd_wrap.drill.training import Recipe
from cgd_wrap.errors import CGDError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.inputs import input_shape
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import undisturbed
from cgd_wrap.split.revision import hold_out

if TYPE_CHECKING:
    from cgd_wrap.guard import CGDGuard

logger = escaped_logger(__name__)

TEST_SHARE = 0.2  # share of the data set that is measured on, if no test set is given


@undisturbed()
def drill(
    guard: CGDGuard,
    attack: str | Attack = "badnets",
    *,
    rate: float | None = None,
    test_dataset: Any = None,
    train: Callable[[nn.Module, Dataset[Any]], object] | None = None,
    train_transform: Any = None,
    test_transform: Any = None,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> Outcome:
    """Plant a backdoor in a copy of a guard's data set, train a victim, defend it, and measure.

    The drill works on copies: fresh networks, raw images read anew, results in a temporary folder.
    The guard, its model, its data, its cache and the random generators stay as they were. The data
    are taken to be clean: the drill doesn't look for a backdoor that they have already.

    Args:
        guard: a guard of the data set, with the CLIP, architecture and configuration to be drilled.
            The guard need not have scanned.
        attack: name of an attack (see :data:`cgd_wrap.attacks.catalogue.ATTACKS`), or an attack;
            fitted here if the attack needs fitting.
        rate: share of the samples (clean-label attacks: of the target class) that is poisoned, in
            (0, 1]. Default: the attack's own rate.
        test_dataset: images to measure on, in the form of the data set. Default: a fifth of each
            class, which is then kept out of training.
        train: trains a model in place on a dataset of (tensor, label) tuples, as you train yours.
            Default: SGD by ``recipe``.
        train_transform: PIL image -> tensor, for training. Default: resized to the model's input,
            scaled to [-1, 1], moved by up to a sixteenth of each side.
        test_transform: PIL image -> tensor, for measuring. Default: as for training, but not moved.
        recipe: recipe of the victim's training. Default: epochs, batch size, learning rate and
            weight decay of :meth:`CGDGuard.fit`.
        seed: seed of networks, order and attack.

    Returns:
        All figures, and the guard of the poisoned data set.

    Raises:
        CGDError: the drill was started under several processes.
        ValueError: the attack is unknown, or the rate asks for no sample or for too many.
        DatasetError: the target class or the images don't allow the attack.
    """
    if Runtime.of(guard.accelerator).num_processes > 1:
        raise CGDError("a drill runs in one process: start it without torchrun")
    attack = _chosen(attack, rate, seed)
    train_set, test_set, raw = _parts(guard, test_dataset, seed)
    channels, *size = input_shape(*guard.subject.evaluated_view(), raw, unwrapped(guard.model))
    plain = ToInput((size[0], size[1]), channels)
    config = guard.config
    experiment = Experiment(
        train_set, test_set,
        train_transform=train_transform or dataclasses.replace(plain, moved_by=1),
        test_transform=test_transform or plain,
        clip=guard.clip, architecture=unwrapped(guard.model), train_model=train,
        recipe=recipe or Recipe(
            config.epochs, config.batch_size, config.learning_rate, config.weight_decay
        ),
        seed=seed, num_workers=guard.num_workers, progress=guard.progress,
        accelerator=guard.accelerator,
    )  # fmt: skip
    if isinstance(attack, FittedAttack) and not attack.fitted:
        attack = attack.fit(train_set, progress=guard.progress)
    poisoned = experiment.poisoned(attack)
    logger.info("Drill: %s, target class %r.", attack, guard.class_names[attack.target])
    victim = experiment.train_victim(poisoned, "victim")
    clean = experiment.train_victim(experiment.clean(), "clean network")
    with tempfile.TemporaryDirectory(prefix="cgd-drill-") as folder:
        return experiment.defend(attack, victim, clean, config, cache_dir=Path(folder))


def _chosen(attack: str | Attack, rate: float | None, seed: int) -> Attack:
    if isinstance(attack, str):
        return attack_of(attack, seed=seed, **({} if rate is None else {"rate": rate}))
    return attack if rate is None else dataclasses.replace(attack, rate=rate)


def _parts(guard: CGDGuard, test_dataset: Any, seed: int) -> tuple[Pictures, Pictures, RawImages]:
    """Make a raw training set and a raw test set, and return all raw images, too."""
    raw, labels, names = guard.subject.raw_view(), guard.targets, guard.class_names
    every = torch.ones(len(labels), dtype=torch.bool)
    every[list(guard.unreadable)] = False
    with suppress(CGDError):  # before a scan, no other sample is known to be bad
        every[list(guard.result.bad)] = False
    if test_dataset is None:
        out = hold_out(labels, every, TEST_SHARE, seed)
        test = Pictures(raw, labels, names, out.nonzero().squeeze(1))
        return Pictures(raw, labels, names, (every & ~out).nonzero().squeeze(1)), test, raw
    keys: dict[str, Any] = {"image_key": guard.layout.image, "label_key": guard.layout.label}
    layout = find_layout(test_dataset, **(keys if guard.clip_dataset is None else {}))
    test_labels = read_labels(test_dataset, layout, len(names))
    test = Pictures(
        RawImages(test_dataset, layout), test_labels, names, torch.arange(len(test_labels))
    )
    return Pictures(raw, labels, names, every.nonzero().squeeze(1)), test, raw
