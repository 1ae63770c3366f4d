"""Exposure reaches what the model sees: all images of a sample (the kind of row 58)."""

from __future__ import annotations

import logging
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import Items, as_tensor
from torch import Tensor
from torch.utils.data import DataLoader

from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.train.dataset import GuardedDataset, _say_unexposed
from cgd_wrap.train.exposure import Draw

SIDE = 16
DRAW = Draw(0, 1, 0.5)  # sample 1, which is white, is blended into sample 0, which is black


def picture(shade: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE, 3), shade, dtype=np.uint8)).convert(mode)


def array(shade: float, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.full(shape, shade, dtype)


def mean_of(image: Any) -> float:
    return float(np.asarray(image, dtype=np.float64).mean())


def drawn(entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sample with a further entry as it is, and as it is drawn with an exposure."""
    samples = [{"image": picture(s), "more": entry(s), "label": s % 2} for s in (0, 255)]
    return samples[0], GuardedDataset(Items(samples), SampleLayout("image", "label"))[DRAW]


IMAGES = {
    "tensor": lambda s: torch.full((3, SIDE, SIDE), s / 255),
    "normalised": lambda s: (torch.full((3, SIDE, SIDE), s / 255) - 0.5) / 0.25,
    "half": lambda s: torch.full((1, SIDE, SIDE), s / 255, dtype=torch.float16),
    "bytes": lambda s: torch.full((3, SIDE, SIDE), s, dtype=torch.uint8),
    "array": lambda s: array(s, SIDE, SIDE, 3, dtype=np.uint8),
    "picture": picture,
    "grey picture": lambda s: picture(s, "L"),
    "of another size": lambda s: torch.full((3, 2 * SIDE, SIDE), s / 255),
}
OTHERS = {
    "token numbers": lambda s: torch.full((1, 77), s),
    "class numbers": lambda s: torch.full((SIDE, SIDE), s),
    "palette": lambda s: picture(s, "P"),
    "boxes": lambda s: torch.full((5, 4), float(s)),
    "boxes of several": lambda s: torch.full((1, 5, 4), float(s)),
    "key points": lambda s: array(s, 17, 3),
    "embedding": lambda s: torch.full((512,), float(s)),
    "path": lambda s: f"{s}.png",
    "number": lambda s: s,
    "nothing": lambda s: None,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_every_image_of_a_sample_is_exposed(kind):
    """A raw image beside the tensor that the model sees: both, or the model learns without."""
    before, after = drawn(IMAGES[kind])
    white = IMAGES[kind](255)
    between = (mean_of(before["more"]) + mean_of(white)) / 2
    assert mean_of(after["more"]) == pytest.approx(between, abs=1.0)
    assert mean_of(after["image"]) == pytest.approx(127.5, abs=1.0)
    assert type(after["more"]) is type(before["more"])
    assert mean_of(before["more"]) == mean_of(IMAGES[kind](0))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_image_stays(kind):
    """Boxes, tokens and masks of class numbers are not blended."""
    before, after = drawn(OTHERS[kind])
    assert after["more"] is before["more"]
    assert mean_of(after["image"]) == pytest.approx(127.5, abs=1.0)


def test_two_views_in_a_tuple_are_both_exposed():
    """As contrastive loops have them; position from the end, too."""
    black, white = (torch.full((3, SIDE, SIDE), shade) for shade in (0.0, 1.0))
    items = Items([(black, black, 0), (white, white, 1)])
    for layout in (SampleLayout(0, 2), SampleLayout(-3, -1), SampleLayout(1, 2)):
        first, second, _ = GuardedDataset(items, layout)[DRAW]
        assert first.mean() == second.mean() == 0.5


def test_a_collate_function_that_reads_another_column_gets_exposed_images():
    """A table of datasets with raw images, and tensors that set_transform adds beside."""
    table = datasets.Dataset.from_dict(
        {"image": [picture(0), picture(255)], "label": [0, 1]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        ),
    )
    table.set_transform(
        lambda rows: {**rows, "pixel_values": [as_tensor(image) for image in rows["image"]]}
    )

    def raw(samples: Any) -> tuple[Tensor, Tensor]:
        images = torch.stack([as_tensor(sample["image"]) for sample in samples])
        return images, torch.tensor([sample["label"] for sample in samples])

    guarded = GuardedDataset(table, SampleLayout("pixel_values", "label"))
    images, _ = next(iter(DataLoader(guarded, 1, sampler=[DRAW], collate_fn=raw)))
    assert images.mean() == pytest.approx(0.5, abs=0.01)
    assert guarded[DRAW]["pixel_values"].mean() == 0.5


def test_images_that_cannot_be_exposed_are_said_once(caplog):
    """Bytes of image files, which only the user's collate function reads."""

    def encoded(shade: int) -> bytes:
        file = BytesIO()
        picture(shade).save(file, "PNG")
        return file.getvalue()

    _say_unexposed.cache_clear()
    items = Items([(encoded(0), 0), (encoded(255), 1)])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert GuardedDataset(items, SampleLayout(0, 1))[DRAW][0] == items[0][0]
    assert [record.getMessage() for record in caplog.records] == [
        "Exposure has no effect: the samples' images are of type bytes, which only your collate "
        "function can read. Let the dataset give PIL images, arrays or tensors."
    ]
