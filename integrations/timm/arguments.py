"""The launcher's options: many of timm's train.py, and the guard's, which start with --cgd."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from cgd_wrap.config.reading import load_yaml
from cgd_wrap.guard import DEFAULT_CLIP

ON: dict[str, Any] = {"action": "store_true"}
PAIRS: dict[str, Any] = {"nargs": "*", "default": {}, "action": ParseKwargs}
MANY: dict[str, Any] = {"nargs": "+", "default": None, "type": float}

# Group -> options with their defaults in train.py, or with arguments for argparse.
OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "--data-dir": {"help": "root of the dataset"},
        "--dataset": "", "--train-split": "train", "--val-split": "validation",
        "--dataset-download": ON, "--class-map": "",
        "--input-key": {}, "--target-key": {},
    },
    "model": {
        "--model": "resnet50", "--pretrained": ON, "--initial-checkpoint": "",
        "--resume": "", "--no-resume-opt": ON, "--start-epoch": {"type": int},
        "--num-classes": {"type": int}, "--gp": {}, "--img-size": {"type": int},
        "--input-size": {"nargs": 3, "type": int},
        "--crop-pct": {"type": float}, "--mean": MANY, "--std": MANY, "--interpolation": "",
        "--batch-size -b": 128, "--validation-batch-size -vb": {"type": int},
        "--channels-last": ON, "--grad-accum-steps": 1, "--grad-checkpointing": ON,
        "--model-kwargs": PAIRS, "--drop": 0.0, "--drop-path": {"type": float},
        "--drop-block": {"type": float}, "--sync-bn": ON,
        "--dist-bn": {"default": "reduce", "choices": ("broadcast", "reduce", "")},
        "--model-ema": ON, "--model-ema-decay": 0.9998,
    },
    "optimiser": {
        "--opt": "sgd", "--opt-eps": {"type": float}, "--opt-betas": MANY, "--momentum": 0.9,
        "--weight-decay": 2e-5, "--clip-grad": {"type": float}, "--clip-mode": "norm",
        "--layer-decay": {"type": float}, "--opt-kwargs": PAIRS,
    },
    "schedule": {
        "--sched": "cosine", "--sched-on-updates": ON, "--lr": {"type": float},
        "--lr-base": 0.1, "--lr-base-size": 256, "--lr-base-scale": "", "--lr-noise": MANY,
        "--lr-noise-pct": 0.67, "--lr-noise-std": 1.0, "--lr-cycle-mul": 1.0,
        "--lr-cycle-decay": 0.5, "--lr-cycle-limit": 1, "--lr-k-decay": 1.0, "--warmup-lr": 1e-5,
        "--min-lr": 0.0, "--epochs": 300,
        "--decay-milestones": {"nargs": "+", "type": int, "default": [90, 180, 270]},
        "--decay-epochs": 90.0, "--warmup-epochs": 5, "--warmup-prefix": ON,
        "--cooldown-epochs": 0, "--patience-epochs": 10, "--decay-rate --dr": 0.1,
    },
    "augmentation": {
        "--no-aug": ON, "--scale": {**MANY, "default": [0.08, 1.0]},
        "--ratio": {**MANY, "default": [3 / 4, 4 / 3]}, "--hflip": 0.5, "--vflip": 0.0,
        "--color-jitter": 0.4, "--aa": {}, "--reprob": 0.0, "--remode": "pixel", "--recount": 1,
        "--smoothing": 0.1, "--train-interpolation": "random",
    },
    "refused in a guarded run": {
        "--mixup": 0.0, "--cutmix": 0.0, "--cutmix-minmax": MANY, "--aug-splits": 0,
        "--aug-repeats": 0.0, "--epoch-repeats": 0.0, "--jsd-loss": ON, "--bce-loss": ON,
    },
    "the rest": {
        "--device": "cuda", "--amp": ON,
        "--amp-dtype": {"default": "float16", "choices": ("float16", "bfloat16")},
        "--seed": 42, "--worker-seeding": "all", "--workers -j": 4, "--pin-mem": ON,
        "--no-prefetcher": ON, "--log-interval": 50, "--checkpoint-hist": 10,
        "--eval-metric": "top1", "--output": "output/train", "--experiment": "",
    },
    "guard": {
        "--cgd-off": {**ON, "help": "train as without the guard, to compare"},
        "--cgd-clip": {"default": DEFAULT_CLIP, "help": "open_clip model (%(default)s)"},
        "--cgd-config": {"type": Path, "help": "YAML file of CGDConfig"},
        "--cgd-set": {**PAIRS, "metavar": "NAME=VALUE", "help": "fields of CGDConfig"},
        "--cgd-class-names": {"type": Path, "help": "text file, a name per line, in the order of "
                              "the labels; default: the dataset's"},
        "--cgd-suspicious": {"type": Path, "help": "checkpoint of a backdoored --model; default: "
                             "one is trained briefly"},
        "--cgd-cache": {"type": Path, "help": "where the scan is kept; default: with the results"},
        "--cgd-overwrite": {**ON, "help": "replace a scan of something else there"},
        "--cgd-report": {**ON, "help": "write figure, page and tables with the results"},
    },
}  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--config FILE.yaml`` gives other defaults, as in timm."""
    parser = _parser()
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", "-c", type=Path)
    given, rest = first.parse_known_args(arguments)
    if given.config:
        values = load_yaml(given.config)
        unknown = sorted(set(values) - {action.dest for action in parser._actions})
        if unknown:
            parser.error(f"{given.config}: unknown options {unknown}")
        parser.set_defaults(**values)
    args = parser.parse_args(rest)
    args.data_dir = args.data_dir or args.data
    if not args.data_dir:
        parser.error("where is the data? Give its folder, as DIR or --data-dir DIR")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a timm model on a data set that may be poisoned."
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="root of the dataset")
    parser.add_argument("--config", "-c", metavar="FILE", help="YAML file of other defaults")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flags, value in options.items():
            settings = value if isinstance(value, dict) else {"default": value, "type": type(value)}
            group.add_argument(*flags.split(), **settings)
    return parser
