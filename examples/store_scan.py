"""Scan a data set, clean or under an attack, and store the scores, to check the calibration on.

    OMP_NUM_THREADS=1 python examples/store_scan.py --data DATA --clip local-dir:CLIP \
        --train-rows 0:12000 --attack badnets --rate 0.01 --out tests/stored_scans

The file OUT/NAME.safetensors has a value per sample: both models' log-odds against the given
label, CLIP's first choice, the label, whether it looks wrong to CLIP, and whether the sample was
poisoned; and by class the share of images that CLIP would know under a wrong label. No image is in
it. ``--noise`` makes honest data whose labels are wrong in part.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from image_data import Pictures, read_data
from label_noise import KINDS, mislabelled
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import transforms

from cgd_wrap import CGDConfig, CGDGuard, functional
from cgd_wrap.attacks.catalogue import ATTACKS, attack_of
from cgd_wrap.drill import Experiment, Recipe
from cgd_wrap.split.label_scores import LabelScores
from cgd_wrap.split.wrong_labels import WrongLabels


def scores_of(guard: CGDGuard) -> dict[str, Tensor]:
    """Collect the values that a finished scan has for each sample, by name."""
    clip, suspicious = (
        torch.cat([logits for _, logits, _ in stored.units()]) for stored in guard.logits
    )
    every = torch.ones_like(guard.targets, dtype=torch.bool)
    by_clip = LabelScores.of(guard.logits[0], guard.targets, reference_scores=False, compare=True)
    wrong = WrongLabels.of([by_clip], guard.targets, every)
    return {
        "looks_wrong": wrong.looks_wrong,
        "leaving": wrong.leaving,
        "as_sure": wrong.as_sure,
        "labels": guard.targets.to(torch.uint8),
        "clip_score": functional.label_log_odds_against(clip, guard.targets).float(),
        "clip_choice": clip.argmax(dim=1).to(torch.uint8),
        "suspicious_score": functional.label_log_odds_against(suspicious, guard.targets).float(),
    }


def command_without_paths(args: argparse.Namespace) -> str:
    """The command of this run, with words in place of paths, which differ between machines."""
    places = {"--data": "DATA", "--clip": f"local-dir:{Path(args.clip).name}", "--out": "OUT"}
    words = ["python", "examples/store_scan.py"]
    for before, word in zip(["", *sys.argv[1:]], sys.argv[1:], strict=False):
        words.append(places.get(before, word))
    return shlex.join(words)


def scanned(args: argparse.Namespace) -> CGDGuard:
    train = Pictures(read_data(args.data, "train"), args.train_rows, args.side)
    train.classes = args.class_names or train.classes
    if args.noise:
        kind, share = args.noise.split(":")
        train.targets = mislabelled(train.targets, kind, float(share), args.seed)
    normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    tensor = transforms.Compose([transforms.ToTensor(), normalise])
    experiment = Experiment(
        train, train, tensor, tensor, clip=args.clip, recipe=Recipe(widths=tuple(args.widths)),
        progress=False,
    )  # fmt: skip
    attack = None
    if args.attack != "clean":
        rate = {} if args.rate is None else {"rate": args.rate}
        attack = attack_of(args.attack, seed=args.seed, target=args.target, **rate)
    config = CGDConfig(seed=args.seed)
    return experiment.guard(attack, experiment.network(), config, cache_dir=args.cache).scan()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Any = parser.add_argument
    add("--data", required=True, help="see image_data.py")
    add("--clip", required=True)
    add("--attack", choices=[*ATTACKS, "clean"], default="clean")
    add("--rate", type=float, help="default: the attack's own")
    add("--target", type=int, default=0)
    add("--train-rows", type=lambda text: range(*map(int, text.split(":"))), metavar="A:B")
    add("--side", type=int, help="pixels; default: the first image's")
    add("--widths", nargs=4, type=int, default=[8, 16, 32, 64], help="of the suspicious ResNet-9")
    add("--noise", metavar="KIND:SHARE", help=f"wrong labels: {', '.join(KINDS)}")
    add("--class-names", nargs="+", help="for CLIP; default: the data set's own")
    add("--cache", type=Path, help="keep the whole scan here, too")
    add("--seed", type=int, default=0)
    add("--name", help="of the file; default: attack and rate")
    add("--out", type=Path, default=Path("tests/stored_scans"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    guard = scanned(args)
    poisoned = torch.zeros(len(guard.targets), dtype=torch.bool)
    poisoned[getattr(guard.base, "poisoned", [])] = True
    name = args.name or (args.attack if args.rate is None else f"{args.attack}-{args.rate:g}")
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "attack": args.attack, "target": args.target, "poisoned": int(poisoned.sum()),
        "class_names": guard.class_names, "agreement": guard.result.agreement,
        "noise": args.noise, "power": guard.result.power and guard.result.power.as_dict(),
        "command": command_without_paths(args),
    }  # fmt: skip
    file = args.out / f"{name}.safetensors"
    save_file({**scores_of(guard), "poisoned": poisoned}, file, {"facts": json.dumps(facts)})
    file.chmod(0o644)  # safetensors writes 0600, whatever the umask
    print(json.dumps({"file": str(file), "verdict": guard.verdict.sentence, **facts}))


if __name__ == "__main__":
    main()
