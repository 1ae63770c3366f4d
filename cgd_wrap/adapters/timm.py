"""Guarding timm's loaders and training scripts.

In a script that builds its loader by ``create_loader``, such as timm's own ``train.py``::

    from cgd_wrap.adapters.timm import evaluated, protect, refuse_mixing

    refuse_mixing(args)
    view = evaluated(dataset_train, data_config)
    guard = CGDGuard(model, dataset_train, eval_dataset_view=view, cache_dir="runs/cgd").scan()
    loader_train, train_loss_fn = protect(
        guard, loader_train, train_loss_fn, epochs=args.epochs
    )
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from timm.data import ImageNetInfo, create_transform
from timm.data.loader import PrefetchLoader
from timm.data.mixup import FastCollateMixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, SoftTargetCrossEntropy

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.adapters.watching import CountingWatch
from cgd_wrap.data.class_names import find_class_names
from cgd_wrap.train.loss import CGDLoss, Criterion

# Option of timm's train.py -> the option's value when off, and why a guarded run can't have it.
REFUSED: dict[str, tuple[Any, str]] = {
    "mixup": (0, "blends labels"),
    "cutmix": (0, "blends labels"),
    "cutmix_minmax": (None, "blends labels"),
    "aug_splits": (0, "is for AugMix, which repeats labels"),
    "jsd_loss": (False, "is for AugMix, and compares samples with each other"),
    "bce_loss": (False, "is computed class by class, not sample by sample"),
    "aug_repeats": (0, "draws samples several times, where the guard decides how often"),
    "epoch_repeats": (0, "draws samples several times, where the guard decides how often"),
}
# Criterion of timm's train.py -> the options under which train.py takes another criterion.
REFUSED_LOSSES = {
    SoftTargetCrossEntropy: "--mixup 0 --cutmix 0, without --cutmix-minmax",
    BinaryCrossEntropy: "without --bce-loss",
    JsdCrossEntropy: "without --jsd-loss",
}
_WORDNET_ID = re.compile(r"n\d{8}")


def refuse_mixing(options: Any) -> None:
    """Refuse options of timm's ``train.py`` under which a label doesn't name a single sample.

    Args:
        options: namespace or mapping of option names, such as ``mixup``, to values. Missing
            options count as off.

    Raises:
        ValueError: there are such options; all are named, with the way to turn each off.
    """
    values = options if isinstance(options, Mapping) else vars(options)
    faults = []
    for name, (off, reason) in REFUSED.items():
        value = values.get(name, off)
        if value in (off, None):
            continue
        flag = f"--{name.replace('_', '-')}"
        leave_out = value is True or off is None
        cure = f"leave {flag} out" if leave_out else f"pass {flag} {off}"
        given = flag if value is True else f"{flag} {value}"
        faults.append(f"{given} {reason}: {cure}")
    if faults:
        raise ValueError("a guarded run needs to know each label's sample. " + "; ".join(faults))


def class_names(dataset: Any) -> list[str] | None:
    """Class names in the order of the labels, with WordNet ids (``n01440764``) put into words.

    Args:
        dataset: dataset of ``create_dataset``, or any other dataset that a guard takes.

    Returns:
        The names; None if the dataset doesn't know the names of its classes.
    """
    names = find_class_names(dataset)
    if not names or not all(_WORDNET_ID.fullmatch(name) for name in names):
        return names
    information = ImageNetInfo()
    try:
        every = [information.label_name_to_description(name) for name in names]
    except KeyError:  # an id of another version of WordNet
        return names
    detailed = [information.label_name_to_description(name, detailed=True) for name in names]
    first = [synonyms.split(",")[0] for synonyms in every]
    # "Crane" is a bird and a machine: a name has as many words as tell its class from the others.
    by_first, by_all = Counter(first), Counter(every)
    return [
        short if by_first[short] == 1 else (full if by_all[full] == 1 else definition)
        for short, full, definition in zip(first, every, detailed, strict=True)
    ]


def evaluated(dataset: Any, data_config: Mapping[str, Any]) -> Any:
    """Copy a dataset so that its samples come as timm evaluates a model on them.

    The samples are the same, and the given dataset is not changed.

    Args:
        dataset: dataset of ``create_dataset``, with or without a transform.
        data_config: configuration that ``resolve_data_config`` returned.

    Returns:
        A dataset for ``CGDGuard(eval_dataset_view=...)``; its images are normalised float tensors.
    """
    view = copy.copy(dataset)
    view.transform = create_transform(**data_config, is_training=False)
    return view


def protect(
    guard: Guarded,
    loader: Any,
    criterion: Criterion | None = None,
    *,
    epochs: int | None = None,
) -> tuple[Any, CGDLoss]:
    """Rebuild a loader of timm's over the guarded samples, and wrap the criterion.

    This is :meth:`CGDGuard.protect` for loaders of ``create_loader``, with or without prefetcher.
    Normalisation, random erasing and every option of the loader stay. A loss that is NaN or
    infinite is said once.

    Args:
        guard: a guard of the loader's dataset, which has scanned.
        loader: loader of ``create_loader(is_training=True)``.
        criterion: the script's criterion. Default: cross entropy.
        epochs: number of epochs that the script runs, as for :meth:`CGDGuard.protect`.

    Raises:
        TypeError: the loader can't be rebuilt, such as that of ``use_multi_epochs_loader``.
        ValueError: the loader blends labels by mixup or CutMix, or the criterion is made for
            blended labels; the criterion isn't computed sample by sample; the loader serves
            another dataset.
    """
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if isinstance(getattr(inner, "collate_fn", None), FastCollateMixup):
        raise ValueError(
            "this loader blends labels by mixup or CutMix, so that they no longer say which "
            "samples they belong to. Create it without (train.py: --mixup 0 --cutmix 0)"
        )
    cure = REFUSED_LOSSES.get(type(criterion))
    if cure is not None:
        raise ValueError(
            f"{type(criterion).__name__} isn't the loss of single samples with labels of their "
            f"own, which a guarded run needs: run train.py {cure}"
        )
    guarded, loss = guard.protect(inner, criterion, epochs=epochs)
    loss.register_forward_hook(CountingWatch())
    if inner is loader:
        return guarded, loss
    outer = copy.copy(loader)
    outer.loader = guarded
    return outer, loss
