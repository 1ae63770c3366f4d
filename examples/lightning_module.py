"""A guarded LightningModule: train an image classifier on data that someone has poisoned.

    python examples/lightning_module.py [--unguarded]

The lines that guard the run are marked with a plus; all others are an ordinary training script. The
script trains on the demo's shapes, a tenth of them with a BadNets trigger, and prints clean
accuracy and attack success rate.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap import CGDGuard
from cgd_wrap.adapters.lightning import CGDCallback
from cgd_wrap.demo.run import ATTACKS, CLIP, TEST_SEED, TRAIN_SEED, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import evaluate_backdoor
from cgd_wrap.models.small_resnet import small_resnet


class Classifier(LightningModule):
    """An ordinary LightningModule whose criterion is an attribute."""

    def __init__(self, num_classes: int, steps: int) -> None:
        super().__init__()
        self.network, self.steps = small_resnet(num_classes, (8, 16, 32, 64)), steps
        self.criterion: nn.Module = nn.CrossEntropyLoss()

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        images, labels = batch
        loss = self.criterion(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Make AdamW, with a learning rate that falls to a hundredth."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4000, help="training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--unguarded", action="store_true")
    options = parser.parse_args()

    seed_everything(0)
    attack, test = ATTACKS["badnets"], ShapesDataset(options.size // 3, TEST_SEED)
    train_set = attack.poison(ShapesDataset(options.size, TRAIN_SEED), to_tensor)
    test_set = ShapesDataset(len(test), TEST_SEED, to_tensor)
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
    module = Classifier(len(test.classes), steps=options.epochs * len(train_loader))
    callbacks = []
    if not options.unguarded:
        guard = CGDGuard(module, train_set, clip=CLIP).scan()  # +
        train_loader, module.criterion = guard.protect(train_loader, module.criterion)  # +
        callbacks.append(CGDCallback(guard))  # +
    trainer = Trainer(
        max_epochs=options.epochs, callbacks=callbacks, logger=False, enable_checkpointing=False
    )
    trainer.fit(module, train_loader)

    triggered = attack.triggered(test, to_tensor)
    figures = evaluate_backdoor(module, test_set, triggered, attack.target)
    print(f"clean accuracy {figures.clean_accuracy:.1%}, ", end="")
    print(f"attack success rate {figures.attack_success_rate:.1%}")


if __name__ == "__main__":
    main()
