from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cgd_wrap.data.pixels import (
    UnusableValuesError,
    as_rgb,
    check_file,
    check_size,
    deep_scales,
    is_image,
    to_rgb,
)
from cgd_wrap.errors import DatasetError

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


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize(
    ("worst", "reason", "message"),
    [
        (-0.5, "out_of_range", r"in \[0, 1\], got \[-0\.5.*clip_dataset="),
        (1.5, "out_of_range", r"got \[0\.5, 1\.5.*clip_dataset="),
        (float("nan"), "nonfinite", "1 of 48 values are NaN or infinite"),
        (float("-inf"), "nonfinite", "1 of 48 values are NaN or infinite"),
    ],
)
def test_one_impossible_value_is_named(worst, reason, message, as_array, kind):
    """Row 54."""
    image = torch.full((3, 4, 4), 0.5, dtype=kind)
    image[0, 0, 0] = worst
    with pytest.raises(UnusableValuesError, match=message) as caught:
        as_rgb(image.numpy() if as_array else image)
    assert caught.value.reason == reason
    assert isinstance(caught.value, DatasetError)


def test_rounding_is_no_fault():
    """Row 54: interpolation leaves values such as 1.0000001."""
    image = torch.full((3, 4, 4), 1 + 2e-7)
    image[0] = -1e-4
    assert as_rgb(image).getpixel((0, 0)) == (0, 255, 255)


@pytest.mark.parametrize("value", [np.int16(-5), np.int32(-1)])
def test_negative_integers_are_refused(value):
    with pytest.raises(UnusableValuesError, match=r"0 or more, got -.*clip_dataset="):
        as_rgb(np.full((4, 4), value))


@pytest.mark.parametrize(
    ("top", "bits"), [(200, 8), (900, 10), (4095, 12), (16383, 14), (16384, 16), (65535, 16)]
)
@pytest.mark.parametrize("form", ["I;16", "I", "array", "tensor"])
def test_the_largest_value_of_a_data_set_says_how_deep_it_is(top, bits, form):
    """Row 11: cameras keep 12 bits in 16, which 8 bits fewer would leave black."""
    deep = np.full((8, 8), top, dtype=np.int32 if form == "I" else np.uint16)
    deep[0, 0] = top // 2
    image = Image.fromarray(deep) if form.startswith("I") else deep
    image = torch.from_numpy(deep.astype(np.int32)) if form == "tensor" else image
    scales = deep_scales([image, Image.new("RGB", SIZE), np.zeros((8, 8, 3), np.uint8)])
    assert scales == {"i": 2.0 ** (8 - bits)}
    rgb = as_rgb(image, scales)
    assert rgb.getpixel((1, 1)) == (top >> (bits - 8),) * 3
    assert rgb.getpixel((0, 0)) == ((top // 2) >> (bits - 8),) * 3
    brighter = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    assert as_rgb(brighter, scales).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("top", "scale"), [(0.5, 255.0), (200.0, 1.0), (4000.0, 2.0**-4)])
def test_the_same_for_floats_of_an_image_file(top, scale):
    image = Image.fromarray(np.full((8, 8), top, np.float32))
    assert deep_scales([image]) == {"f": scale}
    assert as_rgb(image, {"f": scale}).getpixel((0, 0)) == (round(top * scale),) * 3


def test_images_of_8_bits_say_nothing_of_depth():
    images = [Image.new("L", SIZE), np.zeros((4, 4), np.uint8), torch.rand(3, 4, 4), b"file"]
    assert deep_scales(images) == {}


def test_aspect_bomb():
    """Row 8."""
    for width, height in [(640, 480), (1, 1), (4000, 4000), (12_000, 9000), (1, 1300)]:
        check_size(width, height, 224)
    for width, height in [(1, 5000), (5000, 1)]:
        resized = " x ".join(str(224 * side) for side in (width, height))
        message = rf"{width} x {height} pixels become {resized} when the shorter edge .* 224"
        with pytest.raises(Image.DecompressionBombError, match=message):
            check_size(width, height, 224)


def test_a_file_is_refused_by_its_header(tmp_path):
    """Row 8: no pixel has been decoded."""
    for name, image in {"thin": Image.new("L", (1, 5000)), "good": Image.new("L", SIZE)}.items():
        image.save(tmp_path / f"{name}.png")
    data = (tmp_path / "thin.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:50])  # the header is whole
    (tmp_path / "text.png").write_text("no image")
    for name in ("thin", "cut"):
        with pytest.raises(Image.DecompressionBombError, match="1 x 5000"):
            check_file(str(tmp_path / f"{name}.png"))
    for path in ("good.png", "text.png", "gone.png"):
        check_file(str(tmp_path / path))
    check_file(None)
