"""Long-tailed data under an attack: what each bound of an epoch's growth costs and saves.

    python examples/long_tail.py --data DATA --clip local-dir:CLIP --rows 0:20000 \
        --profile step --growth none 1 1.5 2 3 4 --method repair from-scratch

Prints a row per bound: how many times as long an epoch is as without a guard, the seconds of the
training, clean accuracy (over all classes alike, and over the small classes alone), attack success
rate and robust accuracy. A scan is made once; each training starts from the same weights.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence

import torch
from image_data import Pictures, read_data
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from cgd_wrap import CGDConfig
from cgd_wrap.attacks.catalogue import attack_of
from cgd_wrap.drill import Experiment, Recipe
from cgd_wrap.drill.experiment import transformed
from cgd_wrap.models.prediction import predict_with_labels


def tail_sizes(largest: int, classes: int, ratio: float, profile: str) -> list[int]:
    """Sizes of the classes: the last is ``ratio`` times smaller than the first."""
    if profile == "step":
        return [largest] + [round(largest / ratio)] * (classes - 1)
    return [round(largest * ratio ** (-k / (classes - 1))) for k in range(classes)]


def long_tailed(targets: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Indices of the first images of each class, as many as ``sizes`` says."""
    left, kept = list(sizes), []
    for index, label in enumerate(targets):
        if left[label] > 0:
            left[label] -= 1
            kept.append(index)
    return kept


def recalls(model: nn.Module, data: object) -> Tensor:
    """Recall of each class."""
    predictions, labels = predict_with_labels(model, data)
    return torch.stack(
        [(predictions[labels == k] == k).double().mean() for k in labels.unique().tolist()]
    )


def main() -> None:
    """Run the measurement that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--rows", default="0:20000", help="training rows, A:B")
    parser.add_argument("--test-rows", default="0:4000", help="test rows, A:B")
    parser.add_argument("--profile", choices=("step", "exponential"), default="exponential")
    parser.add_argument("--ratio", type=float, default=50, help="largest class to smallest")
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--growth", nargs="+", default=["none", "1", "1.5", "2", "3", "4"])
    parser.add_argument("--method", nargs="+", default=["repair"])
    parser.add_argument("--epochs", type=int, default=20, help="of the victim, and from scratch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(format="# %(message)s")
    logging.getLogger("cgd_wrap").setLevel(logging.INFO)

    whole = Pictures(read_data(args.data, "train"), range(*map(int, args.rows.split(":"))))
    test = Pictures(read_data(args.data, "test"), range(*map(int, args.test_rows.split(":"))))
    classes = len(whole.classes or ())
    largest = min(torch.bincount(torch.tensor(whole.targets)).tolist())
    sizes = tail_sizes(largest, classes, args.ratio, args.profile)
    kept = long_tailed(whole.targets, sizes)
    whole.images = [whole.images[i] for i in kept]
    whole.targets = [whole.targets[i] for i in kept]
    plain = transforms.ToTensor()
    augmented = transforms.Compose(
        [transforms.RandomCrop(whole.side, 4), transforms.RandomHorizontalFlip(), plain]
    )
    recipe = Recipe(epochs=args.epochs, batch_size=128, max_rate=0.1, widths=(8, 16, 32, 64))
    experiment = Experiment(
        whole, test, augmented, plain, args.clip, recipe=recipe,
        seed=args.seed, progress=False,
    )  # fmt: skip
    attack = attack_of(args.attack, target=args.target, seed=args.seed, rate=args.rate)
    victim = experiment.train_victim(experiment.poisoned(attack), "victim")
    weights = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    clean_trained = experiment.train_victim(experiment.clean(), "clean-trained")
    print(f"{len(whole)} images, classes of {sizes}; {args.attack} {args.rate}, {args.target=}")
    print("| method | bound | epoch | seconds | CA | CA, small classes | ASR | RA |")
    print("|---|---|---|---|---|---|---|---|")

    def row(method: str, bound: str, length: float, seconds: float, model: nn.Module) -> None:
        figures = experiment.measure(model, attack)
        by_class = recalls(model, transformed(test, plain))
        small = by_class[torch.tensor(sizes) < largest / 5].mean()
        print(
            f"| {method} | {bound} | {length:.2f}x | {seconds:.0f} | {100 * by_class.mean():.1f} "
            f"| {100 * small:.1f} | {100 * figures.attack_success_rate:.1f} "
            f"| {100 * figures.robust_accuracy:.1f} |",
            flush=True,
        )

    row("victim", "-", 1, 0, victim)
    row("clean-trained", "-", 1, 0, clean_trained)
    with tempfile.TemporaryDirectory() as cache:
        for method in args.method:
            for bound in args.growth:
                growth = None if bound == "none" else float(bound)
                config = CGDConfig(seed=args.seed, max_epoch_growth=growth)
                if method == "from-scratch":
                    model = experiment.network()
                    config = config.replace(
                        epochs=args.epochs, learning_rate=recipe.max_rate,
                        batch_size=recipe.batch_size, weight_decay=recipe.weight_decay,
                    )  # fmt: skip
                else:
                    model = experiment.network(weights)
                guard = experiment.guard(attack, model, config, cache_dir=cache).scan()
                loader, _ = guard.protect(DataLoader(guard.base, 128, shuffle=True))
                started = time.perf_counter()
                guard.fit()
                seconds = time.perf_counter() - started
                length = len(loader) * 128 / len(guard.base)
                row(method, bound, length, seconds, model)


if __name__ == "__main__":
    main()
