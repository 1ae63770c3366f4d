"""Training the suspicious model, so briefly that it learns a backdoor before anything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cgd_wrap.config import CGDConfig
from cgd_wrap.data import LabelledImages
from cgd_wrap.data.failures import memory_explained
from cgd_wrap.errors import TrainingDivergedError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.finite import TrainingWatch
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import fitted
from cgd_wrap.models.schedule import set_rate
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import seeded

logger = escaped_logger(__name__)

STEPS, SMALL_BATCH = 64, 32  # least steps an epoch, as long as batches hold 32 samples or more


def train_suspicious(
    model: nn.Module,
    view: Dataset[Tensor],
    labels: Int[Tensor, "n"],
    indices: Int[Tensor, "m"],
    config: CGDConfig,
    runtime: Runtime,
    *,
    run: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Train a fresh model for a few epochs, over all processes of the group.

    The loss is the cross entropy on the given labels, without augmentation. Each batch is divided
    among the processes, and the mean is taken over the whole batch. Training is seeded: the same
    number of processes gives the same weights.

    Args:
        model: freshly initialised; trained in place.
        view: ``[i] -> image tensor [C, H, W]``.
        labels: given labels.
        indices: samples to train on.
        config: epochs, optimiser, learning rate and its schedule, weight decay, batch size, seed.
        runtime: device and processes.
        run: number of this run, for its seed and its progress bar.
        num_workers: number of processes that read images.
        progress: draw a bar on the main process.

    Returns:
        The model, in eval mode.

    Raises:
        TrainingDivergedError: a weight is NaN or infinite, also after a second training in full
            precision if the first was in mixed precision.
        CGDError: memory ran out; the batch size is named.
    """
    options: dict[str, Any] = {"run": run, "num_workers": num_workers, "progress": progress}
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return _trained(model, view, labels, indices, config, runtime, **options)
    except TrainingDivergedError as error:
        with runtime.autocast():
            if not torch.is_autocast_enabled(runtime.device.type):
                raise
        logger.warning("%s. The suspicious model is trained again in full precision.", error)
    model.load_state_dict(untrained)
    in_full = replace(runtime, autocast=nullcontext)
    return _trained(model, view, labels, indices, config, in_full, **options)


def _trained(
    model: nn.Module,
    view: Dataset[Tensor],
    labels: Int[Tensor, "n"],
    indices: Int[Tensor, "m"],
    config: CGDConfig,
    runtime: Runtime,
    *,
    run: int,
    num_workers: int,
    progress: bool,
) -> nn.Module:
    model = model.to(runtime.device).train()
    wrapped = DistributedDataParallel(model) if runtime.num_processes > 1 else model
    optimizer = _optimizer(model, config)
    seed = int(np.random.SeedSequence((config.seed, run)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    samples = LabelledImages(view, labels)
    # With a few thousand samples, large batches would leave too few steps to learn anything.
    batch_size = min(config.suspicious_batch_size, max(SMALL_BATCH, len(indices) // STEPS))
    steps, done = config.suspicious_epochs * -(-len(indices) // batch_size), 0
    bar = tqdm(
        total=steps,
        desc=f"suspicious model {run + 1}/{config.suspicious_runs}", unit="step",
        disable=not (progress and runtime.is_main),
    )  # fmt: skip
    watch = TrainingWatch(model, runtime.device, steps, config.suspicious_epochs)
    where = f"in a step of {batch_size} samples; suspicious_batch_size makes it smaller"
    with bar, seeded(seed + runtime.process_index), memory_explained(where):
        for _ in range(config.suspicious_epochs):
            order = indices[torch.randperm(len(indices), generator=generator)]
            batches = list(order.split(batch_size))
            for size, images, given in _batches(samples, batches, runtime, num_workers):
                with runtime.autocast():
                    logits = logits_of(wrapped(fitted(images, model)))
                loss = F.cross_entropy(logits.float(), given, reduction="sum")
                done += 1
                watch.see(loss)
                set_rate(
                    optimizer, config.suspicious_learning_rate, config.suspicious_schedule,
                    done / steps,
                )  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                # DDP averages over processes; the factor gives the mean over the whole batch.
                (loss * runtime.num_processes / size).backward()
                optimizer.step()
                bar.update()
    watch.check(model)
    return model.eval()


def _optimizer(model: nn.Module, config: CGDConfig) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": config.suspicious_learning_rate,
        "weight_decay": config.suspicious_weight_decay,
    }
    if config.suspicious_optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, **options)
    return torch.optim.Adam(model.parameters(), **options)


def _batches(
    samples: LabelledImages, batches: Sequence[Tensor], runtime: Runtime, num_workers: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each batch: size of the whole batch, then images and labels of this process' share."""
    # BatchNorm needs two samples on each process.
    batches = [batch for batch in batches if len(batch) >= 2 * runtime.num_processes]
    shares = [batch[runtime.process_index :: runtime.num_processes].tolist() for batch in batches]
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=shares,
        num_workers=num_workers,
        generator=torch.Generator(),  # or the loader draws from the user's global one
    )
    for batch, (images, labels) in zip(batches, loader, strict=True):
        yield len(batch), images.to(runtime.device), labels.to(runtime.device)
