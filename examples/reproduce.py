"""Run attacks x rates x defences on a data set, and print a table; no run is made twice.

    python examples/reproduce.py --data DATA --clip local-dir:CLIP --out runs/table \
        --attack badnets wanet --rate 0.01 0.1 --method none paper default --seed 0 1 2

OUT/runs.jsonl gets a line per run. Victims, scans and fitted attacks are kept in OUT, too, and
used again; options that need other victims than OUT has are refused. On two cores, two
processes with OMP_NUM_THREADS=1 and an OUT each are the steadiest; `--table A/runs.jsonl
B/runs.jsonl` prints one table of several files.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from adaptive import target_probability
from baselines import kept_by
from device_batches import training_on
from image_data import Pictures, read_data
from tables import as_tables, key_of, read_runs
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.utils.data import Subset
from torchvision import transforms

from cgd_wrap import CGDConfig
from cgd_wrap.attacks import Attack, FittedAttack
from cgd_wrap.attacks.catalogue import ATTACKS, attack_of
from cgd_wrap.backdoorbench.networks import build_network
from cgd_wrap.clip.several import as_list
from cgd_wrap.drill import Experiment, Recipe, train_classifier
from cgd_wrap.drill.outcome import compared
from cgd_wrap.files import write_atomically, write_json
from cgd_wrap.metrics import detection_figures
from cgd_wrap.randomness import seeded

GUARDED = {
    # The authors' code stops training by accuracy on the test set. Here, few images are held out:
    # the authors' tolerance is within the noise, and would end most runs early. So the paper's
    # preset trains for all of its epochs.
    "paper": CGDConfig.paper(tolerance=None),
    "default": CGDConfig(),
    "fixed": CGDConfig(sigma="fixed"),
}
# The methods of a table:
# - "none" leaves the victim as it is; the methods of GUARDED repair the victim.
# - "from-scratch" trains a fresh network under the default, for as long as the victim.
# - "fine-tune" trains the victim, and "scratch" a fresh network, on the default's clean split.
# - "spectral" and "activation" train a fresh network without what an older detector finds.
METHODS = ("none", *GUARDED, "from-scratch", "fine-tune", "scratch", "spectral", "activation")
# Options that a victim's figures depend on, but that are not in the names of its file and folder.
VICTIM_OPTIONS = (
    "train_rows", "test_rows", "side", "target",
    "epochs", "batch_size", "max_rate", "widths", "bf16",
)  # fmt: skip


@dataclass
class Bench:
    """A data set with a seed and a recipe; all networks trained on them are kept in a folder."""

    experiment: Experiment
    folder: Path
    clean: nn.Module | None = None
    target_probability: torch.Tensor | None = None  # by CLIP, of each training image

    def model(self, name: str, data: Any) -> nn.Module:
        """Train a network on the data without a defence, or read the network that was kept."""
        path = self.folder / f"{name}.pt"
        if path.is_file():
            return self.experiment.network(torch.load(path, weights_only=True)).eval()
        model = self.experiment.train_victim(data, name)
        weights = io.BytesIO()
        torch.save(model.state_dict(), weights)
        write_atomically(path, weights.getvalue())
        return model

    def run(
        self, attack: Attack | None, name: str, method: str, *, where_clip_errs: bool = False
    ) -> dict[str, Any]:
        """Defend against an attack, and measure before and after.

        An attack of None leaves the data clean; figures are then measured under BadNets.
        """
        experiment, seconds = self.experiment, {}
        if isinstance(attack, FittedAttack):
            attack = attack.fit(experiment.train, cache_dir=self.folder / "attacks")
        if attack is not None and where_clip_errs:
            attack = attack.ranked_by(self.probability_of(attack.target))
        measured = attack or ATTACKS["badnets"]()
        data = experiment.clean() if attack is None else experiment.poisoned(attack)
        victim = self.model(name, data) if attack else self.model("clean", data)
        if self.clean is None:
            self.clean = self.model("clean", experiment.clean())
        before = experiment.measure(victim, measured)
        started = time.perf_counter()
        model, found = self.defended(attack, victim, data, name, method, seconds)
        if method != "none":
            seconds[method] = time.perf_counter() - started - sum(seconds.values())
        after = before if model is victim and method == "none" else None
        after = after or experiment.measure(model, measured)
        clean = experiment.measure(self.clean, measured)
        return {**compared(before, after, clean), **found, "seconds": rounded(seconds)}

    def probability_of(self, target: int) -> torch.Tensor:
        """Probability that the first CLIP gives the target class, for each training image."""
        if self.target_probability is None:
            experiment = self.experiment
            self.target_probability = target_probability(
                as_list(experiment.clip)[0], experiment.train, experiment.class_names, target
            )
        return self.target_probability

    def defended(
        self, attack: Attack | None, victim: nn.Module, data: Any, name: str, method: str,
        seconds: dict[str, float],
    ) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
        """Apply a defence; return the network after it, and figures of what the defence found."""
        experiment = self.experiment
        poisoned = torch.zeros(len(experiment.train), dtype=torch.bool)
        if attack is not None:
            poisoned[data.poisoned] = True
        if method == "none":
            return victim, {}
        if method in ("spectral", "activation"):
            steady = experiment.steady(attack)
            kept = kept_by(method, victim, steady, float(poisoned.double().mean()))
            found = {"removed": int((~kept).sum()), "poison_removed": share(~kept, poisoned)}
            return self.retrained(data, kept), found
        config = GUARDED.get(method, GUARDED["default"]).replace(seed=experiment.seed)
        if method == "from-scratch":
            recipe, victim = experiment.recipe, experiment.network()
            config = config.replace(
                epochs=recipe.epochs, batch_size=recipe.batch_size,
                learning_rate=recipe.max_rate, weight_decay=recipe.weight_decay,
            )  # fmt: skip
        started = time.perf_counter()
        scans = self.folder / "scans" / f"{name}-{'paper' if method == 'paper' else 'default'}"
        guard = experiment.guard(attack, victim, config, cache_dir=scans)
        guard.scan(overwrite=True)  # replaces a scan by another CLIP; the suspicious model stays
        seconds["scan"] = time.perf_counter() - started
        found = {
            "split": guard.split.counts(),
            "suspected": guard.suspected_classes,
            "estimated_poison_rate": guard.poison_estimate.rate,
            "detection": None
            if attack is None
            else detection_figures(guard.entropy_map, guard.split, poisoned).as_dict(),
            "zero_shot_agreement": guard.result.agreement,
            "warnings": guard.result.warnings,
        }
        if method == "scratch":
            return self.retrained(data, guard.split.clean), found
        if method == "fine-tune":
            indices = guard.split.clean.nonzero().squeeze(1).tolist()
            train_classifier(
                victim, Subset(data, indices), experiment.recipe,
                seed=experiment.seed, title=method, progress=experiment.progress,
            )  # fmt: skip
            return victim, found
        with seeded(experiment.seed):
            guard.fit()
        return guard.model, found

    def retrained(self, data: Any, kept: torch.Tensor) -> nn.Module:
        """Train a fresh network on the kept samples."""
        subset = Subset(data, kept.nonzero().squeeze(1).tolist())
        return self.experiment.train_victim(subset, "retrained")


def share(found: torch.Tensor, poisoned: torch.Tensor) -> float | None:
    """Share of the poison that was found; None without poison."""
    return float(found[poisoned].double().mean()) if bool(poisoned.any()) else None


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}


def network_of(name: str, num_classes: int) -> nn.Module:
    """Make an untrained network: BackdoorBench's preactresnet18, or timm's model of this name."""
    if name == "preactresnet18":
        return build_network(name, num_classes)
    return timm.create_model(name, num_classes=num_classes)


def experiment_of(args: argparse.Namespace, seed: int) -> Experiment:
    train = Pictures(read_data(args.data, "train"), one_by_one(args.train_rows), args.side)
    test = Pictures(read_data(args.data, "test"), one_by_one(args.test_rows), train.side)
    normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    plain = [transforms.ToTensor(), normalise]
    crop = transforms.RandomCrop(train.side, padding=train.side // 8)
    train.classes = args.class_names or train.classes
    if not train.classes:
        raise SystemExit("the data set doesn't name its classes: pass --class-names")
    architecture = network_of(args.model, len(train.classes)) if args.model else None
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no")
    recipe = Recipe(
        args.epochs, args.batch_size, args.max_rate, widths=tuple(args.widths), bf16=args.bf16
    )
    train_on_device = training_on(
        accelerator.device, recipe, normalise,
        seed=seed, num_workers=args.workers, progress=not args.quiet,
    )  # fmt: skip
    return Experiment(
        train, test,
        train_transform=transforms.Compose([crop, transforms.RandomHorizontalFlip(), *plain]),
        test_transform=transforms.Compose(plain),
        clip=args.clip, architecture=architecture, recipe=recipe, seed=seed,
        train_model=train_on_device if accelerator.device.type == "cuda" else None,
        num_workers=args.workers, progress=not args.quiet, accelerator=accelerator,
    )  # fmt: skip


def make(args: argparse.Namespace) -> None:
    log = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    made = {key_of(run) for run in read_runs([log] if log.is_file() else [])}
    dataset, network = args.name or Path(args.data).name, args.model or "resnet9"
    for seed in args.seed:
        folder = args.out / f"{dataset}-{network}" / f"seed-{seed}"
        claim(folder, {name: str(getattr(args, name)) for name in VICTIM_OPTIONS})
        bench = None
        for name in args.attack:
            for rate in args.rate or [None]:
                attack = chosen(name, rate, seed, args.target)
                for method in args.method:
                    where = {
                        "attack": name, "rate": attack.rate if attack else 0.0, "seed": seed,
                        "preset": method, "dataset": dataset, "model": network,
                        "clip": " + ".join(Path(clip).name for clip in args.clip),
                        "class_names": ", ".join(args.class_names or []),
                        "poison": args.poison,
                    }  # fmt: skip
                    if key_of(where) in made:
                        continue
                    if bench is None:
                        bench = Bench(experiment_of(args, seed), folder)
                    title = f"{name}-{where['rate']}"
                    adaptive = args.poison == "where-clip-errs"
                    title += f"-where-{Path(args.clip[0]).name}-errs" if adaptive else ""
                    found = bench.run(attack, title, method, where_clip_errs=adaptive)
                    run = {**where, **found}
                    made.add(key_of(where))
                    with log.open("a") as lines:
                        lines.write(json.dumps(run) + "\n")


def claim(folder: Path, options: dict[str, str]) -> None:
    """Reserve a folder for results of these options.

    Raises:
        SystemExit: the folder has results of other options.
    """
    file = folder / "options.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        write_json(file, options)
    before = json.loads(file.read_text())
    other = [f"{name} was {before[name]}" for name in options if before[name] != options[name]]
    if other:
        raise SystemExit(f"{folder} is of other options: {', '.join(other)}; give another --name")


def chosen(name: str, rate: float | None, seed: int, target: int) -> Attack | None:
    if name == "clean":
        return None
    return attack_of(name, seed=seed, target=target, **({} if rate is None else {"rate": rate}))


def rows(text: str) -> list[range]:
    """Read ranges of rows, written as START:STOP,START:STOP."""
    return [range(*map(int, part.split(":"))) for part in text.split(",")]


def one_by_one(ranges: list[range] | None) -> list[int] | None:
    return None if ranges is None else [row for part in ranges for row in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print and end")
    parser.add_argument("--data", help="see image_data.py")
    parser.add_argument("--name", help="of the data set, in runs.jsonl; default: DATA's last part")
    parser.add_argument("--clip", nargs="+", default=["ViT-B-32/laion2b_s34b_b79k"])
    parser.add_argument("--class-names", nargs="+", help="for CLIP; default: the data set's own")
    parser.add_argument(
        "--poison", choices=("random", "where-clip-errs"), default="random",
        help="which samples: any, or those that the first CLIP takes for the target's anyway",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--attack", nargs="+", choices=[*ATTACKS, "clean"], default=[*ATTACKS])
    parser.add_argument("--rate", nargs="+", type=float, help="default: each attack's own")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["none", "default"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--model", help="preactresnet18, or a timm name; default: a ResNet-9")
    parser.add_argument("--train-rows", type=rows, metavar="A:B,..", help="default: all")
    parser.add_argument("--test-rows", type=rows, metavar="A:B,..", help="default: all")
    parser.add_argument("--side", type=int, help="pixels; default: the first image's")
    parser.add_argument("--epochs", type=int, default=12, help="of the victims")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-rate", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--widths", nargs=4, type=int, default=[16, 32, 64, 128])
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, on what has it")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.table:
        print(as_tables(read_runs(args.table)))
        return
    if not args.data:
        parser.error("--data is needed")
    make(args)
    print(as_tables(read_runs([args.out / "runs.jsonl"])))


if __name__ == "__main__":
    main()
