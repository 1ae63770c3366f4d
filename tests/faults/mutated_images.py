"""Mutates image files of six formats and reads each mutant as the library does.

python mutated_images.py FIRST COUNT: reads mutants, from number FIRST on, under a memory limit;
prints how many were images, and how many were bad for which reason.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from cgd_wrap.data import RawImages
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.errors import BadSampleError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
MEMORY = 2 * 2**30  # bytes beyond what the process has when it starts
CHANGES = 4  # most changes to a file


def seeds() -> list[bytes]:
    """Two good files of each format, of several modes and sizes."""
    rng = np.random.default_rng(0)
    files = []
    for kind in FORMATS:
        for side, mode in ((24, "RGB"), (40, "P" if kind in ("PNG", "GIF", "TIFF") else "L")):
            noise = rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
            file = BytesIO()
            Image.fromarray(noise).convert(mode).save(file, kind)
            files.append(file.getvalue())
    return files


def mutant(number: int, files: list[bytes]) -> bytes:
    """Flip, overwrite, cut, repeat or insert bytes, more often in the first part of the file."""
    rng = random.Random(number)
    data = bytearray(files[number % len(files)])
    for _ in range(rng.randint(1, CHANGES)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
        place = rng.randrange(max(reach, 1))
        change = rng.randrange(6)
        if change == 0:
            data[place : place + 1] = bytes([data[place] ^ (1 << rng.randrange(8))])
        elif change == 1:
            data[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif change == 2:
            data[place : place + rng.randint(1, 16)] = rng.randbytes(rng.randint(0, 16))
        elif change == 3:
            del data[rng.randrange(1, len(data)) :]
        elif change == 4:
            data[place:place] = data[place : place + rng.randint(1, 64)]
        else:
            other = rng.choice(files)
            data[place:] = other[rng.randrange(len(other)) :]
        if not data:
            break
    return bytes(data)


class Files:
    """A mutant after another, in a file each, as an own dataset opens them."""

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self.file, self.first, self.count, self.files = folder / "mutant", first, count, seeds()

    def __len__(self) -> int:
        return self.count + 1

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 0:  # a good image, to be found by
            return Image.new("RGB", (8, 8)), 0
        self.file.write_bytes(mutant(self.first + index - 1, self.files))
        with Image.open(self.file) as image:
            image.load()
            return image.copy(), 0


def outcomes(first: int, count: int) -> Counter[str]:
    """Read mutants; anything but an RGB image or a BadSampleError with a reason is an error."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        images = RawImages(Files(Path(folder), first, count), SampleLayout(0, 1))
        for index in range(1, count + 1):
            try:
                image = images[index]
            except BadSampleError as error:
                found[error.reason] += 1
            except BaseException as error:
                raise AssertionError(f"mutant {first + index - 1}: {error!r}") from error
            else:
                assert image.mode == "RGB"
                found["image"] += 1
    return found


if __name__ == "__main__":
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    print(json.dumps(outcomes(int(sys.argv[1]), int(sys.argv[2]))))
