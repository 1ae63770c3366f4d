"""A guarded HF Trainer, on one process or two.

Apart from the tests, as two processes start from one that has imported this and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tiny_data import NAMES, SIZE, TintReader, quick_config, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.adapters.transformers import CGDCallback, attach


class Samples(Dataset[dict[str, Any]]):
    """Dicts as the Trainer likes them; notes which samples were read, in order."""

    classes = NAMES

    def __init__(self, size: int = SIZE, *, poisoned: bool = True) -> None:
        self.items = [
            {"pixel_values": image, "labels": label if poisoned else index % 3}
            for index, (image, label) in enumerate(tensors(size))
        ]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return self.items[index]


class Classifier(nn.Module):
    """A small network with the interface that the Trainer wants."""

    def __init__(self, *, dropout: float = 0.0, batch_norm: bool = True) -> None:
        super().__init__()
        net = tiny_net()
        net[1] = net[1] if batch_norm else nn.Identity()
        self.net = nn.Sequential(*net[:-1], nn.Dropout(dropout), net[-1])

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 16, "num_train_epochs": 2, "learning_rate": 0.05,
        "logging_steps": 1, "report_to": [], "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(str(folder), **(options | changes))


def guard_of(
    model: nn.Module, dataset: Any, config: CGDConfig | None = None, **options: Any
) -> CGDGuard:
    options = {"suspicious": tiny_net(3), "config": config or quick_config()} | options
    return CGDGuard(model, dataset, clip=TintReader(), progress=False, **options).scan()


def guarded(
    folder: Path, config: CGDConfig | None = None, model: nn.Module | None = None, **changes: Any
) -> tuple[Trainer, CGDCallback, Samples]:
    """A Trainer that is ready to train, its callback, and its data, of which nothing is read."""
    model, data = model or Classifier(), Samples()
    trainer = Trainer(
        model, arguments(folder, **changes), train_dataset=data, eval_dataset=Samples(30)
    )
    callback = attach(guard_of(model, data, config), trainer)
    data.read.clear()
    return trainer, callback, data


def outcome_of_run(folder: Path, **changes: Any) -> dict[str, Any]:
    """Train on 8 samples a step in all; what this process drew, and what came out."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer, _, data = guarded(
        folder, quick_config(holdout_fraction=0.0, exposure_rate=0.0),
        Classifier(batch_norm=False),  # its statistics would be each process' own
        per_device_train_batch_size=8 // world, max_grad_norm=0.0,
        dataloader_drop_last=True,  # or Accelerate repeats samples, to give each process as many
        **changes,
    )  # fmt: skip
    trainer.train()
    return {
        "drawn": data.read[2:],  # the first two are those that the collate function was tried on
        "logs": trainer.state.log_history,
        "weights": {n: t.clone() for n, t in trainer.model.state_dict().items()},
    }


def one_of_two(folder: str) -> None:
    outcome = outcome_of_run(Path(folder), ddp_backend="gloo")
    torch.save(outcome, f"{folder}/{torch.distributed.get_rank()}.pt")
