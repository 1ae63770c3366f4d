"""A guarded HF Trainer: fine-tune an image classifier on data that someone has poisoned.

    python examples/hf_trainer.py [--unguarded]

The lines that guard the run are marked with a plus; all others are an ordinary training script. The
script trains on the demo's shapes, a tenth of them with a BadNets trigger, and prints clean
accuracy and attack success rate.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from cgd_wrap import CGDGuard
from cgd_wrap.demo.run import ATTACKS, CLIP, TEST_SEED, TRAIN_SEED, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import evaluate_backdoor


def as_table(samples: Any, names: list[str]) -> Dataset:
    images, labels = zip(*samples, strict=True)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    table = Dataset.from_dict({"image": images, "label": labels}, features=features)
    table.set_transform(with_pixels)
    return table


def with_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    pixels = [to_tensor(image.convert("RGB")) for image in batch["image"]]
    return {"pixel_values": pixels, "label": batch["label"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4000, help="training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", default="runs/hf_trainer")
    parser.add_argument("--unguarded", action="store_true")
    options = parser.parse_args()

    set_seed(0)
    attack, test = ATTACKS["badnets"], ShapesDataset(options.size // 3, TEST_SEED)
    poisoned = attack.poison(ShapesDataset(options.size, TRAIN_SEED))
    train_set, test_set = as_table(poisoned, test.classes), as_table(test, test.classes)
    model = ResNetForImageClassification(
        ResNetConfig(
            num_labels=len(test.classes), layer_type="basic",
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1],
        )
    )  # fmt: skip
    settings = TrainingArguments(
        options.out, num_train_epochs=options.epochs, per_device_train_batch_size=64,
        learning_rate=5e-3, logging_steps=20, save_strategy="no", report_to=[],
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=train_set, eval_dataset=test_set)
    if not options.unguarded:
        guard = CGDGuard(model, train_set, clip=CLIP).scan()  # +
        guard.attach(trainer)  # +
    trainer.train()

    figures = evaluate_backdoor(model, test_set, attack.triggered(test, to_tensor), attack.target)
    print(f"clean accuracy {figures.clean_accuracy:.1%}, ", end="")
    print(f"attack success rate {figures.attack_success_rate:.1%}")


if __name__ == "__main__":
    main()
