"""Measure how fast one core makes CLIP's pixels of image files, and what that does to the ranks.

    OMP_NUM_THREADS=1 python examples/benchmarks/jpeg_preprocess.py
    OMP_NUM_THREADS=1 PYTHONPATH=examples python examples/benchmarks/jpeg_preprocess.py \
        --clip local-dir:CLIP --data DATA --rows 0:8000

prints a markdown table: decoding and preprocessing by each of the guard's ways, beside open_clip's
own `image_transform`, by turns in one run; in the last row, what a GPU is left to do, on
`--device`. With `--clip`, the script prints another table instead:
how many samples of real images each way moves over a threshold of the split. For it the images are
scaled to four times CLIP's size, get noise, and are saved as JPEG.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import HEAD, Measured, seconds_of
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from cgd_wrap import CGDConfig
from cgd_wrap.clip import OpenClipZeroShot
from cgd_wrap.clip.loading import RGBFirst
from cgd_wrap.clip.preprocessing import in_two_steps
from cgd_wrap.data.drafts import draft
from cgd_wrap.functional import label_nll, normalised_rank

SIDE = 224
FILES = [((32, 32), "PNG"), ((64, 64), "JPEG"), ((500, 375), "JPEG"), ((640, 480), "JPEG"),
         ((1600, 1200), "JPEG")]  # fmt: skip
NOISE, QUALITY, REPEATS, BATCH = 6.0, 90, 8, 256
Way = Callable[[bytes], Tensor]


def grained(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An image with a camera's noise, so that it has fine detail."""
    noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * NOISE
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def file_of(image: Image.Image, kind: str) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, quality=QUALITY)
    return target.getvalue()


def opened(content: bytes, edge: int | None = None) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    return image if edge is None else draft(image, edge)


def ways_of(own: RGBFirst, side: int, edge: int) -> dict[str, Way]:
    """What a worker does by each of the guard's ways that differ for images of so short an edge."""
    exact, fast = in_two_steps(own).in_worker, in_two_steps(own, fast=True).in_worker
    gpu = in_two_steps(own, fast=True, device="cuda").in_worker
    ways: dict[str, Way] = {
        'clip_resize="exact"': lambda content: exact(opened(content)),
        'clip_resize="fast"': lambda content: fast(opened(content)),
    }
    if edge < side:
        ways["where a GPU enlarges"] = lambda content: gpu(opened(content))
    if edge >= 4 * side:
        ways[f"fast, jpeg_edge={2 * side}"] = lambda content: fast(opened(content, 2 * side))
    if edge >= 2 * side:
        ways[f"fast, jpeg_edge={side}"] = lambda content: fast(opened(content, side))
    return ways


def print_speeds(tries: int, sides: list[int]) -> None:
    """A row for each size and way that makes a difference there."""
    own = image_transform(SIDE, is_train=False, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    rng = np.random.default_rng(0)
    print(HEAD)
    for size, kind in FILES:
        if sides and size[0] not in sides:
            continue
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        blurred = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        content = file_of(grained(blurred, rng), kind)
        ways, seconds = ways_of(RGBFirst(own), SIDE, min(size)), dict[str, list[float]]()
        ways["open_clip"] = lambda content: own(opened(content))
        for _ in range(tries):
            for name, way in ways.items():
                start = time.process_time()  # of the core: the machine may have other work
                for _ in range(REPEATS):
                    way(content)
                took = (time.process_time() - start) / REPEATS
                seconds.setdefault(name, []).append(took)
        reference = seconds.pop("open_clip")
        title = f"{size[0]} x {size[1]} {kind}"
        print(Measured(f"{title}, open_clip's own", 1, reference, "itself", reference, 0).row())
        for name, took in seconds.items():
            print(Measured(f"{title}, {name}", 1, took, "open_clip's", reference, 0).row())


def print_device(device: torch.device, tries: int) -> None:
    """What a device does to enlarge small images, beside taking those that a worker enlarged."""
    own = image_transform(SIDE, is_train=False, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    on_device = in_two_steps(RGBFirst(own), device="cuda").on_device

    def sent(images: Tensor) -> None:
        on_device(images.to(device, non_blocking=True)).sum().item()  # waits until all is done

    small, large = (
        torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8) for side in (32, SIDE)
    )
    if device.type == "cuda":
        small, large = small.pin_memory(), large.pin_memory()
    for images in (small, large):
        sent(images)
    took, reference = list[float](), list[float]()
    for _ in range(tries):
        took += seconds_of(partial(sent, small), 1)
        reference += seconds_of(partial(sent, large), 1)
    name = f"{BATCH} images of 32 px, sent, enlarged and normalised on {device.type}"
    print(Measured(name, BATCH, took, f"{SIDE} px, sent and normalised", reference, 0).row())


def features_by_way(
    clip: OpenClipZeroShot, images: Any, side: int, batch: int = 256
) -> dict[str, Tensor]:
    """Features of all images, by the guard's ways of making pixels."""
    steps, rng = clip.preprocess_in_two(), np.random.default_rng(0)
    ways = ways_of(clip.preprocess, side, 4 * side)
    found: dict[str, list[Tensor]] = {name: [] for name in ways}
    for start in range(0, len(images), batch):
        large = [Image.fromarray(one).resize((4 * side, 4 * side), Image.Resampling.BICUBIC)
                 for one in images[start : start + batch]]  # fmt: skip
        contents = [file_of(grained(image, rng), "JPEG") for image in large]
        for name, way in ways.items():
            values = torch.stack([way(content) for content in contents])
            found[name].append(clip.features(steps.on_device(values)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def print_flips(source: str, data: str, rows: range) -> None:
    """A row for each way: how many samples it moves over a threshold, beside the exact way."""
    from image_data import Pictures, read_data

    pictures = Pictures(read_data(data, "train"), rows)
    clip = OpenClipZeroShot(source, pictures.classes)
    side = clip.preprocess_in_two().edge
    if side is None:
        raise SystemExit("this CLIP's preprocessing isn't known: each scan uses it as it is")
    labels = torch.tensor(pictures.targets)
    features = features_by_way(clip, pictures.images, side)
    ranks = {name: rank_of(clip, one.half(), labels) for name, one in features.items()}
    exact = ranks.pop('clip_resize="exact"')
    ranks["exact, features not rounded to fp16"] = rank_of(
        clip, features['clip_resize="exact"'], labels
    )
    config = CGDConfig()
    cuts = (1 - config.sigma_clean, 1 - config.sigma_triggered)
    print("| way | samples | moved over a threshold | expected | mean move of a rank | largest |")
    print("|---|---|---|---|---|---|")
    for name, rank in ranks.items():
        move, flipped = (rank - exact).abs(), torch.zeros(len(rank), dtype=torch.bool)
        expected = 0.0
        for cut in cuts:
            flipped |= (rank > cut) != (exact > cut)
            # Ranks are even in (0, 1]: a sample at a distance below its move is moved across.
            expected += float(move[(exact - cut).abs() < 0.05].mean())
        print(f"| {name} | {len(rank):,} | {int(flipped.sum())} | {100 * expected:.4f}% | "
              f"{move.mean():.2g} | {move.max():.2g} |", flush=True)  # fmt: skip


def rank_of(clip: OpenClipZeroShot, features: Tensor, labels: Tensor) -> Tensor:
    """CLIP's rank of each sample, as a scan has it from its stored features."""
    return normalised_rank(label_nll(clip.logits_from_features(features), labels))


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="only files of these")
    parser.add_argument("--device", default="cpu", help="what enlarges small images")
    parser.add_argument("--clip", help="measure rank flips by this CLIP")
    parser.add_argument("--data", help="real images, as image_data.py reads them")
    parser.add_argument("--rows", default="0:8000", help="rows of these images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.clip:
        print_flips(args.clip, args.data, range(*map(int, args.rows.split(":"))))
    else:
        print_speeds(args.tries, args.widths)
        print_device(torch.device(args.device), args.tries)


if __name__ == "__main__":
    main()
