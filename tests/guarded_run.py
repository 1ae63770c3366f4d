"""A guarded scan as a user's script; the tests start it in processes of its own.

python guarded_run.py CACHE [--options]
torchrun --nproc_per_node 2 guarded_run.py CACHE --accelerate
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from launching import leave
from safetensors.torch import save_file
from torch import Tensor, nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.models.small_resnet import small_resnet
from cgd_wrap.scan import store

NAMES = ["circle", "square", "star"]
DEMO_CLIP = f"local-dir:{Path(__file__).parents[1] / 'cgd_wrap' / 'demo' / 'clip'}"


class Pictures:
    """Noise around a colour that follows the class; every tenth label is wrong."""

    classes = NAMES

    def __init__(self, rows: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shade = torch.arange(rows) % 3
        self.images = torch.rand(rows, 3, size, size, generator=generator) * 0.6
        self.images[torch.arange(rows), shade] += 0.3
        self.labels = torch.where(torch.arange(rows) % 10 == 9, (shade + 1) % 3, shade)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class ByColour:
    """A zero-shot classifier: the brightest channel wins."""

    def __init__(self, seconds: float = 0.0, calls_until_death: int | None = None) -> None:
        self.seconds, self.calls_left = seconds, calls_until_death

    def fingerprint(self) -> str:
        return "by colour"

    def logits(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                os._exit(9)
        return 20 * images.mean(dim=(2, 3))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return small_resnet(3, (4, 4, 8, 8)).eval()


class Slowly(nn.Module):
    """A model that takes its time."""

    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model = model
        os.environ["PAUSE"] = str(seconds)  # no part of the model, so that scans of both go on

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(float(os.environ["PAUSE"]) if len(images) > 2 else 0)
        return self.model(images)


def scan(options: argparse.Namespace, accelerator: Any) -> CGDGuard:
    rank = int(os.environ.get("RANK", "0"))
    store.UNIT_SIZE = options.unit
    clip: Any = ByColour(
        options.seconds, options.calls_until_death if rank == options.dying_rank else None
    )
    config = CGDConfig(
        suspicious_epochs=2, suspicious_batch_size=64, allow_missing_classes=True,
        scan_timeout=options.timeout,
    )  # fmt: skip
    return CGDGuard(
        network(), Pictures(options.rows, options.size),
        clip=DEMO_CLIP if options.demo_clip else clip,
        suspicious=None if options.train else Slowly(network(), options.seconds),
        config=config, accelerator=accelerator, cache_dir=options.cache, progress=False,
    ).scan()  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("--rows", type=int, default=3 * 1024 + 60)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--unit", type=int, default=store.UNIT_SIZE, help="rows of a unit")
    parser.add_argument("--seconds", type=float, default=0.0, help="a batch takes")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--accelerate", action="store_true")
    parser.add_argument("--demo-clip", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--dying-rank", type=int, default=-1)
    parser.add_argument("--calls-until-death", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    accelerator = None
    if options.accelerate:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
    guard = scan(options, accelerator)
    rank = accelerator.process_index if accelerator else 0
    world = accelerator.num_processes if accelerator else 1
    outcome = {**vars(guard.entropy_map), **vars(guard.split), "held_out": guard.result.held_out}
    save_file(outcome, options.cache / f"outcome-{rank}-of-{world}")
    print(f"rank {rank} of {world}: {guard.split.counts()}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
    leave()
