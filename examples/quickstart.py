"""A guarded training loop in plain PyTorch, on data that someone has poisoned.

    python examples/quickstart.py [--unguarded]

The lines that guard the run are marked with a plus; all others are an ordinary training script. The
script trains on the demo's shapes, a tenth of them with a BadNets trigger, and prints clean
accuracy and attack success rate.
"""

from __future__ import annotations

import argparse

import torch
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
    parser.add_argument("--attack", choices=ATTACKS, default="badnets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unguarded", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    attack = ATTACKS[options.attack]
    train_set = attack.poison(ShapesDataset(options.size, TRAIN_SEED), to_tensor)
    model = small_resnet(len(train_set.classes), (8, 16, 32, 64))
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True)
    criterion = nn.CrossEntropyLoss()
    if not options.unguarded:
        guard = CGDGuard(model, train_set, clip=CLIP).scan()  # +
        train_loader, criterion = guard.protect(train_loader, criterion, epochs=options.epochs)  # +
        print("split:", guard.split.counts())

    steps = options.epochs * len(train_loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)
    for epoch in range(options.epochs):
        model.train()
        for images, targets in train_loader:
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    test_set = ShapesDataset(options.size // 3, TEST_SEED, to_tensor)
    triggered = attack.triggered(ShapesDataset(options.size // 3, TEST_SEED), to_tensor)
    figures = evaluate_backdoor(model, test_set, triggered, attack.target)
    print(f"clean accuracy {figures.clean_accuracy:.1%}, ", end="")
    print(f"attack success rate {figures.attack_success_rate:.1%}, ", end="")
    print(f"robust accuracy {figures.robust_accuracy:.1%}")


if __name__ == "__main__":
    main()
