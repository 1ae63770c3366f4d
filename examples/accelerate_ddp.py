"""A guarded training loop with Accelerate, on one process or several.

    python examples/accelerate_ddp.py
    torchrun --nproc_per_node 2 examples/accelerate_ddp.py

The lines that guard the run are marked with a plus; all others are an ordinary Accelerate script.
The script trains on the demo's shapes, a tenth of them with a BadNets trigger, and prints clean
accuracy and attack success rate. Launch configurations for GPUs are in integrations/accelerate.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from cgd_wrap import CGDGuard
from cgd_wrap.demo.run import ATTACKS, CLIP, TEST_SEED, TRAIN_SEED, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import evaluate_backdoor
from cgd_wrap.models.small_resnet import small_resnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4000, help="training images")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--unguarded", action="store_true")
    options = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=2,
        step_scheduler_with_optimizer=False,
    )
    attack = ATTACKS["badnets"]
    train_set = attack.poison(ShapesDataset(options.size, TRAIN_SEED), to_tensor)
    model = small_resnet(len(train_set.classes), (8, 16, 32, 64))
    batch = 32 // accelerator.num_processes  # samples per process; 64 in all, with accumulation
    loader = DataLoader(train_set, batch, shuffle=True, drop_last=True)
    criterion = nn.CrossEntropyLoss()
    if not options.unguarded:
        guard = CGDGuard(model, train_set, clip=CLIP, accelerator=accelerator)  # +
        loader, criterion = guard.scan().protect(loader, criterion, epochs=options.epochs)  # +
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = options.epochs * -(-len(loader) // accelerator.gradient_accumulation_steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer.optimizer, 0.1, steps)

    for epoch in range(options.epochs):
        model.train()
        for images, targets in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(images), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    if accelerator.is_main_process:
        test_set = ShapesDataset(options.size // 3, TEST_SEED, to_tensor)
        triggered = attack.triggered(ShapesDataset(len(test_set), TEST_SEED), to_tensor)
        trained = accelerator.unwrap_model(model)
        figures = evaluate_backdoor(trained, test_set, triggered, attack.target)
        print(f"clean accuracy {figures.clean_accuracy:.1%}, ", end="")
        print(f"attack success rate {figures.attack_success_rate:.1%}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
