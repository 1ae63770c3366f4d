"""A guarded Lightning run, on one process or two.

Apart from the tests, as two processes start from one that has imported this and nothing else.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from tiny_data import NAMES, SIZE, TintReader, quick_config, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.adapters.lightning import CGDCallback

SEED = 3


class Samples(Dataset[Any]):
    """(image, label), which notes in shared memory how often each was read."""

    classes = NAMES

    def __init__(self, size: int = SIZE) -> None:
        self.items = tensors(size)
        self.reads = torch.zeros(size, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        return self.items[index]


class Classifier(LightningModule):
    """An ordinary module, written without a guard in mind."""

    def __init__(self, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.net = tiny_net()
        self.net[1] = self.net[1] if batch_norm else nn.Identity()
        self.criterion: nn.Module = nn.CrossEntropyLoss()
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.criterion(self(images), labels)
        self.log("train_loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", self.criterion(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class ShardingClassifier(Classifier):
    """One whose loader is sharded by itself, and guarded where it is made."""

    def __init__(self, guard: CGDGuard, batch_size: int) -> None:
        super().__init__(batch_norm=False)
        self.guard, self.batch_size = [guard], batch_size  # in a list: not a part of the network

    def train_dataloader(self) -> DataLoader[Any]:
        guard = self.guard[0]
        sampler = DistributedSampler(
            guard.base, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank
        )
        loader: DataLoader[Any] = DataLoader(guard.base, self.batch_size, sampler=sampler)
        loader, self.criterion = guard.protect(loader, self.criterion)
        return loader


def guard_of(model: nn.Module, data: Any, config: CGDConfig | None = None) -> CGDGuard:
    config = config or quick_config(seed=SEED)
    guard = CGDGuard(
        model, data, clip=TintReader(), suspicious=tiny_net(3), config=config, progress=False
    ).scan()
    guard.epoch_indices()  # looks once at some samples, whether they are those of the scan
    data.reads.zero_()
    return guard


def trainer_of(**changes: Any) -> Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**(options | changes))


SHARDINGS = {  # use_distributed_sampler, and whether the user's loader is sharded by itself
    "by-lightning": (True, False),
    "by-user": (False, True),
    "by-user-too": (True, True),
}


def two_processes(folder: str) -> None:
    """Train with Lightning's sharding and with the user's own, and store what was read."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # of few workers; the tests look at the outcome
    for name, (on, sharding) in SHARDINGS.items():
        data = Samples()
        config = quick_config(seed=SEED, holdout_fraction=0.0, exposure_rate=0.0)
        module: Classifier = Classifier(batch_norm=False)
        guard = guard_of(module, data, config)
        loader: DataLoader[Any] | None = None
        if not sharding:
            loader = DataLoader(data, 8, shuffle=True)
            loader, module.criterion = guard.protect(loader, module.criterion)
        else:
            module = ShardingClassifier(guard, 8)
            guard.model = module
        trainer = trainer_of(
            strategy="ddp_fork", devices=2, use_distributed_sampler=on, max_epochs=3,
            callbacks=[CGDCallback(guard)],
        )  # fmt: skip
        trainer.fit(module, loader)
        maps = [guard.epoch_indices().of(epoch) for epoch in range(3)]
        outcome = {
            "read": data.reads.clone(),
            "expected": torch.bincount(torch.cat(maps), minlength=len(data)),
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        }
        torch.save(outcome, f"{folder}/{name}.pt")
