"""Measure on a GPU what the guard makes of it: images a second, share of its rate, a guarded step.

    python examples/benchmarks/on_gpu.py                    # about eight minutes on one GPU
    python examples/benchmarks/on_gpu.py --device cpu --quick    # shows that the script works

CLIPs have open_clip's architectures and random weights, which cost what trained ones cost: nothing
is downloaded. The share of the rate compares the multiplications of the images with those of a
product of two large matrices, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from measuring import seconds_of
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder

from cgd_wrap import CGDConfig, CGDLoss
from cgd_wrap.data import RawImages, find_layout
from cgd_wrap.data.workers import Workers
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.clip_pass import clip_pass
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.train.tags import TAG, SampleTable

CLASSES, SIDE, KEPT = 10, 224, 64
GOALS = {"ViT-B-32": 0.60, "ViT-L-14": 0.74}


class InMemory(Dataset[Any]):
    """Random pictures of 224 px, of which few are different."""

    def __init__(self, size: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (KEPT, SIDE, SIDE, 3), np.uint8)
        self.images = [Image.fromarray(one) for one in pixels]
        self.targets = [index % CLASSES for index in range(size)]
        self.classes = [f"thing {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index % len(self.images)], self.targets[index]


def jpeg_folder(folder: Path, size: int) -> ImageFolder:
    """As many names of a few smooth JPEG files of 500 x 375 pixels."""

    def named(number: int) -> Path:
        return folder / f"thing {number % CLASSES}" / f"{number:06d}.jpg"

    random = np.random.default_rng(0)
    for number in range(size):
        path = named(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < KEPT:
            small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.hardlink_to(named(number % KEPT))
    return ImageFolder(str(folder))


def random_clip(folder: Path, architecture: str) -> tuple[str, int]:
    """Write a CLIP with random weights; its name for the guard, and its operations an image."""
    model = open_clip.create_model(architecture).eval()
    model_config = open_clip.get_model_config(architecture)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocess = open_clip.get_model_preprocess_cfg(model)
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.encode_image(torch.zeros(1, 3, side, side))
    return f"local-dir:{folder}", counter.get_total_flops()


def seconds_on(device: torch.device, work: Callable[[], Any], tries: int) -> list[float]:
    """Seconds of each of several tries, with all that the device has to do for it."""

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(whole, tries)


def product_rate(device: torch.device, size: int) -> float:
    """Operations a second of a product of two square matrices, in bf16 on a GPU."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    seconds_on(device, lambda: a @ b, 3)
    return 2 * size**3 / min(seconds_on(device, lambda: a @ b, 10))


def scan_rate(clip: str, data: Any, workers: int, batch: int, device: torch.device) -> float:
    """Images a second of the pass of CLIP, from the first image to the last unit."""
    precision: Any = "bf16" if device.type == "cuda" else "fp32"
    config = CGDConfig(clip_precision=precision, scan_batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        options = PassOptions(
            Path(folder), {}, CLASSES, config, Runtime(device, 0, 1), Workers(workers),
            progress=False,
        )  # fmt: skip
        start = time.perf_counter()
        clip_pass(clip, data.classes, RawImages(data, find_layout(data)), options)
        return len(data) / (time.perf_counter() - start)


def table_of(size: int) -> SampleTable:
    """What the loss knows of made-up samples, an eighth of them triggered."""
    generator = torch.Generator().manual_seed(0)
    triggered = torch.rand(size, generator=generator) < 1 / 8
    return SampleTable(
        labels=torch.arange(size) % CLASSES, clean=~triggered, triggered=triggered,
        triggered_weight=triggered.float(),
        teacher=torch.randn(int(triggered.sum()), CLASSES, generator=generator),
    )  # fmt: skip


def step_ratio(
    device: torch.device, architecture: str, batch: int, tries: int, *, compiled: bool
) -> list[float]:
    """Seconds of a guarded step over those of a plain one, of each of several tries by turns."""
    model = timm.create_model(architecture, num_classes=CLASSES).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    table = table_of(10_000)
    guarded = CGDLoss(table, torch.full((CLASSES,), 1 / CLASSES), CGDConfig())
    plain: nn.Module = nn.CrossEntropyLoss()
    side = SIDE if device.type == "cuda" else 64
    images = torch.randn(batch, 3, side, side, device=device)
    index = torch.arange(batch, device=device)
    labels = index % CLASSES
    autocast = (
        torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()
    )

    def step(criterion: Any, targets: Tensor) -> Tensor:
        with autocast:
            outputs = model(images)
        loss: Tensor = criterion(outputs, targets)
        return loss

    step = torch.compile(step) if compiled else step

    def steps(criterion: Any, targets: Tensor) -> None:
        for _ in range(10):
            optimizer.zero_grad()
            step(criterion, targets).backward()
            optimizer.step()

    works = (lambda: steps(plain, labels)), (lambda: steps(guarded, index + TAG))
    for work in works:
        work()
    ratios = []
    for _ in range(tries):
        (without,), (with_guard,) = (seconds_on(device, work, 1) for work in works)
        ratios.append(with_guard / without)
    return ratios


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--workers", type=int, default=16)
    args = parser.parse_args()
    device, quick = torch.device(args.device), args.quick
    rate = product_rate(device, 512 if quick else 8192)
    print(f"product of matrices: {rate / 1e12:.3g} TFLOP/s\n")
    print("| CLIP | images | images a second | share of the rate | goal |\n|---|---|---|---|---|")
    for architecture in ["ViT-B-32"] if quick else list(GOALS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "clip").mkdir()
            clip, operations = random_clip(Path(folder) / "clip", architecture)
            size = 64 if quick else 60_000 if architecture == "ViT-B-32" else 12_000
            jpegs = jpeg_folder(Path(folder) / "images", size)
            for name, data in (("in memory", InMemory(size)), ("JPEG, 500 x 375", jpegs)):
                found = scan_rate(clip, data, args.workers, 32 if quick else 1024, device)
                share = found * operations / rate
                print(f"| {architecture} | {name} | {found:,.0f} | {share:.2f} | "
                      f"{GOALS[architecture]:.2f} |", flush=True)  # fmt: skip
    print("\n| step, guarded over plain | min / median / max | goal |\n|---|---|---|")
    for compiled in (False, True):
        ratios = step_ratio(
            device, "resnet18" if quick else "resnet50", 8 if quick else 128,
            2 if quick else 10, compiled=compiled,
        )  # fmt: skip
        said = " / ".join(f"{v:.3f}" for v in (min(ratios), statistics.median(ratios), max(ratios)))
        print(f"| {'compiled' if compiled else 'eager'} | {said} | 1.02 |", flush=True)


if __name__ == "__main__":
    main()
