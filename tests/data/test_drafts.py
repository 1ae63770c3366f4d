"""JPEG files at a reduced scale: only where an image is given as it is in its file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from dataset_zoo import Items, Wrapper
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.readers import create_reader
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from cgd_wrap.data import RawImages
from cgd_wrap.data.drafts import draft
from cgd_wrap.data.layout import SampleLayout, find_layout
from cgd_wrap.errors import BadSampleError

WIDTH, HEIGHT = 90, 66
EDGE = 32  # 66 pixels can be halved once


def gradient() -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    return Image.fromarray(np.stack([across, down, across[:, ::-1]], 2).astype(np.uint8))


def file(kind: str = "JPEG", **options: Any) -> bytes:
    target = io.BytesIO()
    gradient().save(target, kind, **options)
    return target.getvalue()


def folder(root: Path, *, kind: str = "JPEG") -> Path:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / f"0.{kind.lower()}").write_bytes(file(kind))
    return root


def table(*contents: bytes, **feature: Any) -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(**feature), label=datasets.Value("int64"))
    rows = {"image": [{"bytes": one, "path": None} for one in contents],
            "label": [*range(len(contents))]}  # fmt: skip
    return datasets.Dataset.from_dict(rows, features=features)


def drafted(dataset: Any) -> list[Image.Image]:
    view = RawImages(dataset, find_layout(dataset))
    assert view.drafted(None) is view
    small = view.drafted(EDGE)
    assert {view[i].size for i in range(len(view))} == {(WIDTH, HEIGHT)}, "the view itself changed"
    return [small[i] for i in range(len(small))]


def timm_folder(root: Path) -> ImageDataset:
    return ImageDataset(str(root), reader=create_reader("", root=str(root)))


KINDS = {
    "folder": lambda root: ImageFolder(str(folder(root))),
    "subset of a folder": lambda root: Subset(ImageFolder(str(folder(root))), [1, 0]),
    "timm": lambda root: timm_folder(folder(root)),
    "table": lambda root: table(file(), file()),
    "undecoded table": lambda root: table(file(), file(), decode=False),
    "bytes": lambda root: Items([(file(), 0), (file(), 1)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_jpeg_is_decoded_at_half_its_size(kind, tmp_path):
    for image in drafted(KINDS[kind](tmp_path)):
        assert (image.mode, image.size) == ("RGB", (WIDTH // 2, HEIGHT // 2))
        exact = np.asarray(gradient().reduce(2), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - exact).max() < 16


class Stamped(ImageFolder):
    """Puts a trigger at a place of the image."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        image.paste((255, 255, 255), (WIDTH - 4, HEIGHT - 4, WIDTH, HEIGHT))
        return image, label


def own_loader(path: str) -> Image.Image:
    return Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")


WHOLE = {
    "png": lambda root: ImageFolder(str(folder(root, kind="PNG"))),
    "own loader": lambda root: ImageFolder(str(folder(root)), loader=own_loader),
    "own code": lambda root: Stamped(str(folder(root))),
    "wrapped": lambda root: Wrapper(ImageFolder(str(folder(root))), lambda image: image),
    "decoded": lambda root: Items([(gradient(), 0), (gradient(), 1)]),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_other_code_sees_first_stays_whole(kind, tmp_path):
    assert {image.size for image in drafted(WHOLE[kind](tmp_path))} == {(WIDTH, HEIGHT)}


@pytest.mark.parametrize(("edge", "scale"), [(67, 1), (34, 1), (33, 2), (16, 4), (9, 4), (8, 8)])
def test_the_shorter_edge_keeps_so_many_pixels(edge, scale):
    image = draft(Image.open(io.BytesIO(file())), edge)
    assert image.size == (-(-WIDTH // scale), -(-HEIGHT // scale))


def test_a_table_turns_images_as_datasets_does():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    whole = table(file(exif=exif))
    raw = RawImages(whole, find_layout(whole))
    assert raw[0].size == (HEIGHT, WIDTH)
    turned = raw.drafted(EDGE)[0]
    assert turned.size == (HEIGHT // 2, WIDTH // 2)
    exact = np.asarray(raw[0].reduce(2), dtype=int)
    assert np.abs(np.asarray(turned, dtype=int) - exact).max() < 16


@pytest.mark.parametrize("content", [file()[:-900], b"", b"<html>"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_bad_files_are_found_as_before(content, as_folder, tmp_path):
    if as_folder:
        dataset: Any = ImageFolder(str(folder(tmp_path)))
        Path(dataset.samples[1][0]).write_bytes(content)
    else:
        dataset = Items([(file(), 0), (content, 1)])
    view = RawImages(dataset, SampleLayout(0, 1))
    reasons = []
    for one in (view, view.drafted(EDGE)):
        with pytest.raises(BadSampleError) as caught:
            one[1]
        reasons.append(caught.value.reason)
        assert one[0].mode == "RGB"
    assert reasons[0] == reasons[1]


def test_a_small_trigger_is_as_plain_in_the_suspicious_models_copy():
    """A patch of 2% of the side, in a corner."""
    photograph = Image.new("RGB", (1600, 1200), (90, 90, 90))
    photograph.paste((255, 255, 255), (1600 - 32, 1200 - 32, 1600, 1200))
    target = io.BytesIO()
    photograph.save(target, "JPEG", quality=90)
    seen = []
    for edge in (1200, 448, 64):
        image = draft(Image.open(io.BytesIO(target.getvalue())), edge)
        small = image.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
        seen.append(small.getpixel((31, 31))[0] - small.getpixel((0, 0))[0])
    assert seen[0] > 40
    assert min(seen) > 0.9 * seen[0]
