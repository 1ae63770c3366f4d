"""Make a data set with twice the classes and larger images: half the images are upside down.

    python examples/upside_down.py --data cifar10 --side 64 --out cifar10-upside-down

`--data` is a source that `image_data.py` reads; OUT gets a parquet file per split. The upside-down
images of a class are a class of their own, so that a defence can be tried on more classes than
CIFAR-10 has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from image_data import Pictures, read_data
from PIL.Image import Transpose

FLIP = Transpose.FLIP_TOP_BOTTOM


def turned(pictures: Pictures, seed: int) -> Dataset:
    """Turn a random half of the images upside down, and give them their new labels."""
    turn = np.random.default_rng(seed).random(len(pictures)) < 0.5
    images, labels = [], []
    for (image, label), upside_down in zip(pictures, turn.tolist(), strict=True):
        images.append(image.transpose(FLIP) if upside_down else image)
        labels.append(2 * label + upside_down)
    names = [name for known in pictures.classes for name in (known, f"upside-down {known}")]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="see image_data.py")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "test"), start=1):
        data = turned(Pictures(read_data(args.data, split), side=args.side), seed)
        data.to_parquet(args.out / f"{split}.parquet")
        print(f"{split}: {len(data)} images, {len(data.features['label'].names)} classes")


if __name__ == "__main__":
    main()
