"""A folder of pictures in three classes, some of them broken in the ways that files break."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

GOOD_PER_CLASS = 20
NAMES = ["ant", "bee", "cat"]


def picture(seed: int, shade: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 150, (24, 24, 3), dtype=np.uint8)
    pixels[..., shade] += 100
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its data would be all zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def bad_crc() -> bytes:
    data = bytearray(encoded(picture(1, 0), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    return bytes(data)


def bad_files() -> dict[str, tuple[bytes | None, str]]:
    """Place in the folder -> its bytes (None: deleted later), and the reason to be named."""
    return {
        "ant/00 first.jpg": (b"", "empty"),
        "ant/page.jpg": (b"<html><body>404 not found</body></html>", "not_image"),
        "bee/cut.jpg": (encoded(picture(2, 1), "JPEG")[:-300], "truncated"),
        "bee/crc.png": (bad_crc(), "corrupt"),
        "bee/bomb.png": (png_header(60_000, 60_000), "too_large"),
        "cat/thin.png": (encoded(Image.new("L", (1, 5000)), "PNG"), "too_large"),
        "cat/gone.png": (None, "missing"),
    }


def odd_files() -> dict[str, bytes]:
    """Uncommon, but good."""
    base = picture(3, 2)
    wide = np.random.default_rng(4).integers(0, 2**16, (24, 24), dtype=np.uint16)
    return {
        "ant/dot.png": encoded(Image.new("RGB", (1, 1), (200, 10, 10)), "PNG"),
        "ant/cmyk.jpg": encoded(base.convert("CMYK"), "JPEG"),
        "bee/grey.png": encoded(base.convert("L"), "PNG"),
        "bee/palette.png": encoded(base.quantize(16), "PNG", transparency=3),
        "cat/deep.png": encoded(Image.fromarray(wide), "PNG"),
        "cat/bilevel.png": encoded(base.convert("1"), "PNG"),
        "cat/grey alpha.png": encoded(base.convert("LA"), "PNG"),
    }


def write_folder(root: Path, *, broken: bool = True) -> Path:
    for shade, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for k in range(GOOD_PER_CLASS):
            picture(100 * shade + k, shade).save(root / name / f"{k + 10}.png")
    for place, data in odd_files().items():
        (root / place).write_bytes(data)
    for place, (data, _) in bad_files().items() if broken else ():
        (root / place).write_bytes(data if data is not None else encoded(picture(5, 2), "PNG"))
    return root


def delete_the_missing(root: Path) -> None:
    """To be called when the dataset has listed its files."""
    for place, (data, _) in bad_files().items():
        if data is None:
            (root / place).unlink()
