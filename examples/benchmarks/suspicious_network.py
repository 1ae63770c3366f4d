"""Which suspicious model tells poisoned samples by how fast it learns them, and what it costs.

    python examples/benchmarks/suspicious_network.py --data DATA --rows 0:8000 \
        --variants small-32 small-64 copy:resnet18-64 --attacks badnets blended --rates 0.01 0.05

A variant is the guard's own network on copies of so many pixels, or a network of timm on images of
so many pixels. Prints a row per attack: AUROC of the suspicious NLL (how often a poisoned sample is
learned faster than an honest one of the same label), the share of the poison among the tenth of
the samples that was learned fastest, and the accuracy on all given labels, for each variant.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from image_data import Pictures, read_data
from PIL import Image
from torch import Tensor, nn

from cgd_wrap import CGDConfig
from cgd_wrap.attacks.catalogue import attack_of
from cgd_wrap.attacks.poisoning import PoisonedDataset
from cgd_wrap.functional.scores import auroc, label_nll, normalised_rank
from cgd_wrap.models.suspicious_network import SuspiciousNetwork
from cgd_wrap.models.weights import fresh_copy
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.suspicious_training import train_suspicious


class Scaled(nn.Module):
    """A network of the user's, on images in bytes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits of RGB images in [0, 255]."""
        logits: Tensor = self.network(images.float() / 127.5 - 1.0)
        return logits


def variant(name: str, classes: int) -> tuple[Callable[[], nn.Module], int]:
    """What makes the network of a variant, and its images' side in pixels."""
    kind, side = name.rsplit("-", 1)
    if kind == "small":
        return (lambda: SuspiciousNetwork(classes, int(side))), int(side)
    import timm

    architecture = kind.removeprefix("copy:")
    return (lambda: Scaled(timm.create_model(architecture, num_classes=classes))), int(side)


def in_bytes(data: Any, side: int) -> Tensor:
    """All images of a data set, uint8 [N, 3, side, side]."""
    images = [data[index][0] for index in range(len(data))]
    size = (side, side)
    scaled = [
        image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        for image in images
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)


def main() -> None:
    """Run the measurement that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", default="0:8000", help="training rows, A:B")
    parser.add_argument("--variants", nargs="+", default=["small-32", "small-64"])
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blended"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.05])
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=CGDConfig().suspicious_epochs)
    parser.add_argument("--learning-rate", type=float, default=CGDConfig().suspicious_learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = CGDConfig(
        suspicious_epochs=args.epochs, suspicious_learning_rate=args.learning_rate, seed=args.seed
    )
    whole = Pictures(read_data(args.data, "train"), range(*map(int, args.rows.split(":"))))
    classes, runtime = len(whole.classes or ()), replace(Runtime.of(None), num_processes=1)
    print(f"{len(whole)} images of {whole.side} px, {classes} classes, {args.epochs} epochs")
    print("| attack | rate |" + "".join(f" {name} |" for name in args.variants))
    print("|---|---|" + "---|" * len(args.variants))
    for name in args.attacks:
        for rate in args.rates:
            attack = attack_of(name, target=args.target, seed=args.seed, rate=rate)
            poisoned = PoisonedDataset(whole, attack)
            labels, cells = torch.tensor(poisoned.targets), list[str]()
            planted = torch.zeros(len(labels), dtype=torch.bool)
            planted[poisoned.poisoned] = True
            for one in args.variants:
                make, side = variant(one, classes)
                images, started = in_bytes(poisoned, side), time.perf_counter()
                model = train_suspicious(
                    fresh_copy(make(), seed=args.seed), images, labels, torch.arange(len(labels)),
                    config, runtime, progress=False,
                )  # fmt: skip
                with torch.no_grad():
                    logits = torch.cat([model(batch) for batch in images.split(256)])
                seconds = time.perf_counter() - started
                nll = label_nll(logits, labels)
                same = labels == args.target if name != "label_flip" else labels >= 0
                fast = normalised_rank(nll)[planted] <= 0.1
                hits = (logits.argmax(1) == labels).double().mean()
                cells.append(
                    f" {auroc(-nll[same], planted[same]):.3f}, {100 * fast.double().mean():.0f}% "
                    f"({100 * hits:.0f}%, {seconds:.0f} s) |"
                )
            print(f"| {name} | {100 * rate:g}% |{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
