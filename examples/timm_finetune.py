"""A guarded fine-tuning of a timm model, on data that someone has poisoned.

    python examples/timm_finetune.py [--unguarded]

The lines that guard the run are marked with a plus; all others are an ordinary script on timm's
loaders, optimiser and schedule. The script trains on the demo's shapes, a tenth of them with a
BadNets trigger, and prints clean accuracy and attack success rate. For a folder of images, use
integrations/timm/train.py.
"""

from __future__ import annotations

import argparse

import torch
from timm import create_model
from timm.data import create_loader, create_transform, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from cgd_wrap import CGDGuard
from cgd_wrap.adapters.timm import evaluated, protect
from cgd_wrap.demo.run import ATTACKS, CLIP, TEST_SEED, TRAIN_SEED
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import evaluate_backdoor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--pretrained", action="store_true", help="needs the hub")
    parser.add_argument("--size", type=int, default=4000, help="training images")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--unguarded", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attack, test = ATTACKS["badnets"], ShapesDataset(options.size // 3, TEST_SEED)
    dataset = attack.poison(ShapesDataset(options.size, TRAIN_SEED))
    model = create_model(
        options.model, pretrained=options.pretrained, num_classes=len(test.classes)
    ).to(device)
    data = resolve_data_config({"input_size": (3, 32, 32), "crop_pct": 1.0}, model=model)
    loader = create_loader(
        dataset, data["input_size"], 64, is_training=True, device=device, num_workers=2,
        mean=data["mean"], std=data["std"], scale=(0.9, 1.0), hflip=0.0, color_jitter=0.0,
    )  # fmt: skip
    loss_fn = LabelSmoothingCrossEntropy(0.1)
    if not options.unguarded:
        view = evaluated(dataset, data)  # +
        guard = CGDGuard(model, dataset, clip=CLIP, eval_dataset_view=view)  # +
        loader, loss_fn = protect(guard.scan(), loader, loss_fn, epochs=options.epochs)  # +

    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-3, weight_decay=0.05)
    schedule, epochs = create_scheduler_v2(
        optimizer, "cosine", options.epochs, warmup_epochs=1, warmup_lr=1e-4
    )
    for epoch in range(epochs):
        model.train()
        for images, targets in loader:
            loss = loss_fn(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step(epoch + 1)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    transform = create_transform(**data)
    test_set = ShapesDataset(len(test), TEST_SEED, transform)
    figures = evaluate_backdoor(model, test_set, attack.triggered(test, transform), attack.target)
    print(f"clean accuracy {figures.clean_accuracy:.1%}, ", end="")
    print(f"attack success rate {figures.attack_success_rate:.1%}")


if __name__ == "__main__":
    main()
