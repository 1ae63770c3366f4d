"""The suspicious model: trained so briefly on the given data that it knows the backdoor best."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cgd_wrap.config import CGDConfig
from cgd_wrap.model_outputs import logits_of, unwrapped
from cgd_wrap.runtime import Runtime
from cgd_wrap.schedule import set_rate
from cgd_wrap.views import LabelledImages

logger = logging.getLogger(__name__)

STEPS, SMALL_BATCH = 16, 32  # least steps an epoch, unless batches become smaller than this

_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # what DDP and torch.compile add to a name


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with newly initialised fp32 parameters; the model is left as it is.

    A transformers model is built anew from its config; any other is copied, and every module
    initialised by its own ``reset_parameters`` (and timm's ``init_weights``). Parameters of
    modules without one start from a normal distribution of standard deviation 0.02.

    Args:
        model: any classifier.
        seed: of the initialisation; the global random stream is left alone.
    """
    model = unwrapped(model)
    with seeded(seed):
        if hasattr(model, "config") and hasattr(model, "post_init"):
            fresh: nn.Module = type(model)(copy.deepcopy(model.config))
        else:
            fresh = copy.deepcopy(model)
            for module in fresh.modules():
                _reset(module)
            initialise: Any = getattr(fresh, "init_weights", None)
            if hasattr(fresh, "pretrained_cfg") and callable(initialise):
                initialise()
    return fresh.float().requires_grad_(True)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            else:  # a bias or shift starts at 0, a gain or scale at 1
                parameter.fill_(0.0 if name.endswith(("bias", "beta", "shift")) else 1.0)


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """A copy of the model with the weights of a file; nothing in the file is executed.

    Args:
        model: gives the architecture.
        path: ``.safetensors``, or a file that ``torch.load(weights_only=True)`` reads: a state
            dict, or a dict that holds one under ``state_dict`` or ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or weights of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    loaded = copy.deepcopy(unwrapped(model))
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.load_model(loaded, path)
            return loaded
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            weights = weights[key] if isinstance(weights.get(key), dict) else weights
        own = loaded.state_dict()
        loaded.load_state_dict(
            {name if name in own else _WRAPPED.sub("", name): t for name, t in weights.items()}
        )
    except Exception as error:
        raise ValueError(
            f"{path} can't be loaded as weights of {type(loaded).__name__}: {error}"
        ) from error
    return loaded


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

    Cross entropy on the given labels, no augmentation. Each batch is cut over the processes and
    its mean taken over all of it. Seeded: the same number of processes gives the same weights.

    Args:
        model: freshly initialised; trained in place.
        view: ``[i] -> image tensor [C, H, W]``.
        labels: given labels.
        indices: samples to train on.
        config: epochs, optimiser, learning rate and its schedule, weight decay, batch size, seed.
        runtime: device and processes.
        run: number of this run, for its seed and its progress bar.
        num_workers: of the loader.
        progress: draw a bar on the main process.

    Returns:
        The model, in eval mode.
    """
    model = model.to(runtime.device).train()
    wrapped = DistributedDataParallel(model) if runtime.num_processes > 1 else model
    optimizer = _optimizer(model, config)
    seed = int(np.random.SeedSequence((config.seed, run)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    samples = LabelledImages(view, labels)
    # A few thousand samples in large batches are a few steps, in which nothing is learned.
    batch_size = min(config.suspicious_batch_size, max(SMALL_BATCH, len(indices) // STEPS))
    steps, done = config.suspicious_epochs * -(-len(indices) // batch_size), 0
    bar = tqdm(
        total=steps,
        desc=f"suspicious model {run + 1}/{config.suspicious_runs}", unit="step",
        disable=not (progress and runtime.is_main),
    )  # fmt: skip
    with bar, seeded(seed + runtime.process_index):
        for _ in range(config.suspicious_epochs):
            order = indices[torch.randperm(len(indices), generator=generator)]
            batches = list(order.split(batch_size))
            for size, images, given in _batches(samples, batches, runtime, num_workers):
                with runtime.autocast():
                    logits = logits_of(wrapped(images))
                loss = F.cross_entropy(logits.float(), given, reduction="sum")
                done += 1
                set_rate(
                    optimizer, config.suspicious_learning_rate, config.suspicious_schedule,
                    done / steps,
                )  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                # DDP averages over the processes; this makes it the mean over the whole batch.
                (loss * runtime.num_processes / size).backward()
                optimizer.step()
                bar.update()
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
    """This process' share of each batch, after the size of the whole batch."""
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global streams for dropout and initialisers, and put them back afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
