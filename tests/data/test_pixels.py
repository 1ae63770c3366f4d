from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from cgd_wrap.data.pixels import as_rgb, check_size, classify_failure, is_image, to_rgb
from cgd_wrap.errors import BadSampleError, DatasetError

SIZE = (4, 3)


def palette(transparency: object = None) -> Image.Image:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def deep(values: object, dtype: str) -> Image.Image:
    return Image.fromarray(np.full((3, 4), values, dtype=dtype))


GOLDEN = {
    "1": (Image.new("1", SIZE, 1), (255, 255, 255)),
    "L": (Image.new("L", SIZE, 77), (77, 77, 77)),
    "LA": (Image.new("LA", SIZE, (77, 5)), (77, 77, 77)),
    "P": (palette(), (10, 20, 30)),
    "P with one transparent colour": (palette(1), (10, 20, 30)),
    "P with transparency bytes": (palette(b"\x80\x40"), (10, 20, 30)),
    "RGB": (Image.new("RGB", SIZE, (1, 2, 3)), (1, 2, 3)),
    "RGBA": (Image.new("RGBA", SIZE, (1, 2, 3, 0)), (1, 2, 3)),
    "CMYK": (Image.new("CMYK", SIZE, (255, 0, 0, 0)), (0, 255, 255)),
    "I;16": (deep(0x80FF, "<u2"), (0x80, 0x80, 0x80)),
    "I;16 dark": (deep(0x00FF, "<u2"), (0, 0, 0)),
    "I;16B": (deep(0x0102, ">u2"), (1, 1, 1)),
    "I": (deep(0x8001, "int32"), (0x80, 0x80, 0x80)),
    "I of 8 bits": (deep(200, "int32"), (200, 200, 200)),
    "F in [0, 1]": (deep(0.5, "float32"), (128, 128, 128)),
    "F of 8 bits": (deep(200.0, "float32"), (200, 200, 200)),
}


@pytest.mark.parametrize("mode", GOLDEN)
def test_every_mode_becomes_rgb(mode):
    image, expected = GOLDEN[mode]
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", SIZE)
    assert rgb.getpixel((1, 1)) == expected


def test_a_16_bit_png_keeps_its_gradient():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    stored = io.BytesIO()
    Image.fromarray(ramp).save(stored, "png")
    rgb = np.asarray(to_rgb(Image.open(stored)))
    np.testing.assert_array_equal(rgb[..., 0], ramp >> 8)


def test_an_animation_gives_its_first_frame():
    stored = io.BytesIO()
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    frames[0].save(stored, "gif", save_all=True, append_images=frames[1:])
    animation = Image.open(stored)
    animation.seek(1)
    assert to_rgb(animation).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["hwc", "chw", "hw", "unit", "unit chw", "unit array", "bytes"])
def test_arrays_tensors_and_bytes(kind):
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "png")
    unit = torch.from_numpy(pixels).float() / 255
    value = {
        "hwc": pixels,
        "chw": torch.from_numpy(pixels).permute(2, 0, 1),
        "hw": pixels[..., 0],
        "unit": unit,
        "unit chw": unit.permute(2, 0, 1),
        "unit array": unit.numpy(),
        "bytes": {"bytes": stored.getvalue(), "path": None},
    }[kind]
    assert is_image(value)
    expected = np.repeat(pixels[..., :1], 3, axis=2) if kind == "hw" else pixels
    np.testing.assert_array_equal(np.asarray(as_rgb(value)), expected)


def test_a_tensor_of_three_by_three_is_channels_first():
    tensor = torch.zeros(3, 3, 3, dtype=torch.uint8)
    tensor[0] = 9
    assert as_rgb(tensor).getpixel((2, 2)) == (9, 0, 0)
    assert as_rgb(tensor.numpy()).getpixel((2, 2)) == (0, 0, 0)


@pytest.mark.parametrize("value", ["text", 3, None, torch.zeros(5), np.zeros((2, 3, 4, 5)), {}])
def test_what_is_no_image(value):
    assert not is_image(value)
    with pytest.raises(TypeError, match="expected an image"):
        as_rgb(value)


@pytest.mark.parametrize("worst", [-0.1, 1.1, float("nan")])
def test_normalised_values_are_refused(worst):
    image = torch.full((3, 4, 4), 0.5)
    image[0, 0, 0] = worst
    with pytest.raises(DatasetError, match="clip_dataset="):
        as_rgb(image)


def test_aspect_bomb():
    check_size(640, 480, 224)
    check_size(1, 1, 224)
    check_size(4000, 4000, 224)
    for width, height in [(1, 5000), (5000, 1)]:
        with pytest.raises(Image.DecompressionBombError, match="5000"):
            check_size(width, height, 224)


def failure(action) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def read(path) -> Image.Image:
    with Image.open(path) as image:
        return to_rgb(image)


def test_failures_of_real_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(jpeg, "jpeg")
    Image.fromarray(noise).save(png, "png")
    damaged = bytearray(png.getvalue())
    damaged[60] ^= 0xFF
    contents = {
        "empty": b"",
        "not_image": b"<html>404</html>",
        "truncated": jpeg.getvalue()[:-200],
        "corrupt": bytes(damaged),
    }
    for reason, data in contents.items():
        path = tmp_path / f"{reason}.jpg"
        path.write_bytes(data)
        error = failure(lambda path=path: read(path))
        assert classify_failure(error, str(path)) == reason
        assert classify_failure(error) == reason
    missing = str(tmp_path / "gone.jpg")
    assert classify_failure(failure(lambda: Image.open(missing)), missing) == "missing"


def test_failures_by_type():
    cause = RuntimeError("loader")
    cause.__cause__ = Image.DecompressionBombError("1000 x 1000")
    reasons = {
        "too_large": cause,
        "no_permission": PermissionError(13, "denied"),
        "io_error": OSError(5, "input/output error"),
        "corrupt": zlib.error("bad"),
        "not_image": UnidentifiedImageError("cannot identify image file <_io.BytesIO object>"),
        "getitem_failed": KeyError("bug"),
        "nonfinite": BadSampleError(1, "nonfinite", "x"),
    }
    assert {reason: classify_failure(error) for reason, error in reasons.items()} == {
        reason: reason for reason in reasons
    }
