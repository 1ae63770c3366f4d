"""The same small run in every host, guarded or not: what the conformance table compares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tiny_data import NAMES, TintReader, pixels_and_labels, quick_config, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from user_loop import train_epoch

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.train.loss import CGDLoss

SEED, BATCH, RATE = 3, 16, 0.05
SIZE, HELD_OUT = 240, 60


class Samples(Dataset[Any]):
    """(image, label), or dicts of them; counts how often each was read."""

    classes = NAMES
    transform: Any = None  # timm sets one

    def __init__(self, images: Tensor, labels: Tensor, *, as_dicts: bool = False) -> None:
        self.images, self.labels, self.as_dicts = images, labels, as_dicts
        self.reads = torch.zeros(len(labels), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        image, label = self.images[index], int(self.labels[index])
        return {"pixel_values": image, "labels": label} if self.as_dicts else (image, label)


def random_streams() -> tuple[Any, ...]:
    """State of torch's and NumPy's global streams; beartype, on in the tests, uses Python's."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()


def poisoned_data(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Tints, [N, 3, 8, 8] in [0, 1]; every tenth has a white corner and the label 0."""
    pixels, labels = pixels_and_labels(size)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels)


def clean_data(size: int, start: int) -> tuple[Tensor, Tensor]:
    """Further samples of the same kind, without white corners."""
    images, labels = poisoned_data(start + size)
    keep = torch.arange(start + size) % 10 != 0
    keep[:start] = False
    return images[keep], labels[keep]


@dataclass
class Run:
    """A run, and what was seen of it.

    Attributes:
        network: trained in place, image batch -> logits.
        data: training samples.
        guard: scanned, or None.
        folder: for what the host writes.
        epochs: to train.
        targets: that the guarded loss got in training, a tensor per step.
        losses: that it gave.
        untagged: batches without tags that it met in training.
        evaluation_loss: by the host's own evaluation after training, nats.
        streams: random streams before the scan, before the guard is put in, after that, and after
            training.
    """

    network: nn.Module
    data: Samples
    guard: CGDGuard | None
    folder: Path
    epochs: int
    targets: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    untagged: int = 0
    evaluation_loss: float = 0.0
    streams: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def held_out(self) -> Samples:
        """What the host evaluates on, in one batch."""
        return Samples(*clean_data(HELD_OUT, SIZE), as_dicts=self.data.as_dicts)

    def loader(self) -> DataLoader[Any]:
        """The user's loader."""
        return DataLoader(self.data, BATCH, shuffle=True, drop_last=True)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the reads of training alone."""
        self.streams.append(random_streams())
        self.data.reads.zero_()
        yield
        self.streams.append(random_streams())

    def watch(self, loss: CGDLoss) -> None:
        """Note what a guarded loss gets and gives in training."""

        def note(module: CGDLoss, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                self.targets.append(inputs[1].detach().clone())
                self.losses.append(float(output.detach()))
                self.untagged = module.untagged_batches

        loss.register_forward_hook(note)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


def protected(run: Run, loader: Any, protect: Any = CGDGuard.protect) -> tuple[Any, nn.Module]:
    """What the user's script trains by: its loader and its criterion, guarded if the run is."""
    criterion: nn.Module = nn.CrossEntropyLoss()
    run.streams.append(random_streams())
    if run.guard:
        loader, criterion = protect(run.guard, loader, criterion)
        run.watch(criterion)
    return loader, criterion


def train(
    run: Run,
    loader: Any,
    criterion: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    """The loop that a user wrote, and its evaluation."""
    with run.training():
        for _ in range(run.epochs):
            train_epoch(model.train(), loader, criterion, optimizer, backward)
    model.eval()
    with torch.no_grad():
        images, labels = next(iter(DataLoader(run.held_out, HELD_OUT)))
        run.evaluation_loss = float(criterion(model(images), labels))


def plain(run: Run) -> None:
    """A loop in PyTorch."""
    train(run, *protected(run, run.loader()), run.network, optimizer_of(run.network))


def with_accelerate(run: Run) -> None:
    """The same loop under Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader, criterion = protected(run, run.loader())
    model, optimizer, loader = accelerator.prepare(run.network, optimizer_of(run.network), loader)
    train(run, loader, criterion, model, optimizer, accelerator.backward)


def with_timm(run: Run) -> None:
    """timm's loader; its train.py has the plain loop."""
    from timm.data import create_loader

    from cgd_wrap.adapters.timm import protect

    loader = create_loader(
        run.data, (3, 8, 8), BATCH, is_training=True, no_aug=True, use_prefetcher=False,
        num_workers=0, persistent_workers=False, device=torch.device("cpu"),
    )  # fmt: skip
    train(run, *protected(run, loader, protect), run.network, optimizer_of(run.network))


class Dicts(nn.Module):
    """The network with the interface that the HF Trainer wants."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {
            "loss": F.cross_entropy(logits, labels), "logits": logits,
        }  # fmt: skip


def with_trainer(run: Run) -> None:
    """Hugging Face's Trainer."""
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        str(run.folder), per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=len(run.held_out),
        num_train_epochs=run.epochs, learning_rate=RATE, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, seed=SEED, dataloader_drop_last=True,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        Dicts(run.network), settings, train_dataset=run.data, eval_dataset=run.held_out
    )
    run.streams.append(random_streams())
    if run.guard:
        callback = run.guard.attach(trainer)
        callback.stopping = None  # it would read the held-out samples, too
        run.watch(callback.loss.loss)
    with run.training():
        trainer.train()
    run.data.reads[:2] -= int(run.guard is not None)  # the collate function was tried on these
    run.evaluation_loss = trainer.evaluate()["eval_loss"]


def with_lightning(run: Run) -> None:
    """Lightning's Trainer."""
    from lightning.pytorch import LightningModule, Trainer

    from cgd_wrap.adapters.lightning import CGDCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = run.network

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.criterion(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self.criterion(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, callbacks = Module(), []
    loader, module.criterion = protected(run, run.loader())
    if run.guard:
        callbacks = [CGDCallback(run.guard)]
        callbacks[0].stopping = None
    trainer = Trainer(
        accelerator="cpu", max_epochs=run.epochs, logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with run.training():
        trainer.fit(module, loader)
    held_out = DataLoader(run.held_out, HELD_OUT)
    run.evaluation_loss = trainer.validate(module, held_out, verbose=False)[0]["loss"]


HOSTS: dict[str, Callable[[Run], None]] = {
    "plain": plain,
    "accelerate": with_accelerate,
    "timm": with_timm,
    "transformers": with_trainer,
    "lightning": with_lightning,
}


def run_in(host: str, folder: Path, *, guarded: bool = True, epochs: int = 2, **config: Any) -> Run:
    """Train the small network in a host, from the same weights.

    The scan comes before the host: runs share its cache, which lies beside their folders.
    """
    streams = [random_streams()]
    data = Samples(*poisoned_data(), as_dicts=host == "transformers")
    network, guard = tiny_net(), None
    if guarded:
        settings: CGDConfig = quick_config(seed=SEED, **config)
        guard = CGDGuard(
            network, data, clip=TintReader(), config=settings, progress=False,
            cache_dir=folder.parent / ("dicts-scanned" if data.as_dicts else "scanned"),
        ).scan()  # fmt: skip
    run = Run(network, data, guard, folder, epochs, streams=streams)
    HOSTS[host](run)
    return run
