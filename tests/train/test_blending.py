from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.train.blending import blended, blends, toned


@pytest.mark.parametrize(
    "make",
    [
        lambda value, h, w: Image.new("RGB", (w, h), (value,) * 3),
        lambda value, h, w: Image.new("L", (w, h), value),
        lambda value, h, w: np.full((h, w, 3), value, dtype=np.uint8),
        lambda value, h, w: torch.full((3, h, w), value, dtype=torch.uint8),
        lambda value, h, w: torch.full((1, h, w), value, dtype=torch.float16),
        lambda value, h, w: np.full((h, w), value, dtype=np.float32),
    ],
    ids=["RGB", "L", "array-uint8", "tensor-uint8", "tensor-half", "array-flat"],
)
@pytest.mark.parametrize("other_size", [(6, 8), (5, 9)], ids=["same-size", "other-size"])
@pytest.mark.parametrize("tone", [False, True])
def test_what_comes_of_two_images_has_the_kind_of_the_first(make, other_size, tone):
    image, other = make(100, 6, 8), make(200, *other_size)
    mixed = (toned if tone else blended)(image, other, 0.25)
    assert type(mixed) is type(image)
    values, original = np.asarray(mixed), np.asarray(image)
    assert values.shape == original.shape
    assert values.dtype == original.dtype
    assert np.all(values == 125)  # of even areas the tone is all


@given(st.floats(0, 0.96875), st.integers(0, 99))
def test_a_tone_is_passed_on_without_what_the_image_shows(share, seed):
    generator = torch.Generator().manual_seed(seed)
    image, other = (torch.rand(3, 8, 8, generator=generator) for _ in range(2))
    other = 0.5 * other + torch.tensor([0.4, 0.1, 0.0])[:, None, None]
    changed = toned(image, other, share)
    for moment in (torch.mean, torch.std):
        given, wanted, got = (moment(one, (1, 2)) for one in (image, other, changed))
        assert torch.allclose(got, torch.lerp(given, wanted, share), atol=1e-5)
    both = torch.stack([image.flatten(1), changed.flatten(1)])
    for channel in range(3):
        assert torch.corrcoef(both[:, channel])[0, 1] > 0.9999


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_toned_picture_stays_in_its_range(share):
    rng = np.random.default_rng(0)
    bright = rng.integers(128, 256, (6, 8, 3), dtype=np.uint8)
    stark = 255 * rng.integers(0, 2, (6, 8, 3), dtype=np.uint8)
    changed = toned(Image.fromarray(bright), Image.fromarray(stark), share)
    assert changed.mode == "RGB"
    values = np.asarray(changed)
    assert np.array_equal(values, toned(bright, stark, share))
    if share == 0:
        assert np.array_equal(values, bright)
    else:
        assert values.std() > 1.3 * bright.std()
        lightest = bright[:, :, 0].argmax()
        assert values[:, :, 0].flat[lightest] == 255  # cut, where it would wrap
    flat = Image.new("L", (8, 6), 100)
    assert np.all(np.asarray(toned(flat, Image.new("L", (8, 6), 200), share)) == 100 + 100 * share)


def test_channels_and_modes_are_fitted():
    grey, colour = (
        torch.full((1, 4, 4), 2.0),
        torch.stack([torch.full((4, 4), v) for v in (1.0, 2, 6)]),
    )
    assert torch.equal(blended(grey, colour, 0.5), torch.full((1, 4, 4), 2.5))
    assert torch.equal(blended(colour, grey, 0.5)[2], torch.full((4, 4), 4.0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert blended(palette, Image.new("L", (4, 4), 50), 0.5).getpixel((0, 0)) == (30, 35, 40)


def test_encoded_images_are_left_to_the_collate_that_reads_them():
    for shown in (blended, toned):
        assert shown(b"\x89PNG", b"\x89PNG", 0.5) == b"\x89PNG"


@pytest.mark.parametrize("tone", [False, True])
def test_images_of_many_kinds_are_blended_together_as_alone(tone):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    floats = [random(3, 250, 250).float() for _ in range(3)]  # more than are worked on at a time
    arrays = [random(6, 8, 3).numpy() for _ in range(2)]
    images = [*floats, *arrays, Image.fromarray(arrays[0]), b"PNG", random(6, 8), *floats]
    others = [floats[1], arrays[1], random(1, 5, 5), *arrays, Image.fromarray(arrays[1]), b"PNG"]
    others += [floats[0], random(3, 4, 4), floats[1], floats[1]]
    kept = [copy.deepcopy(image) for image in (*images, *others)]
    shares = [i / 32 for i in range(len(images))]
    found = blends(images, others, shares, tone=tone)
    for made, *parts in zip(found, images, others, shares, strict=True):
        alone = (toned if tone else blended)(*parts)
        assert type(made) is type(alone)
        if not isinstance(made, bytes):
            np.testing.assert_allclose(np.asarray(made), np.asarray(alone), rtol=1e-5, atol=1e-3)
    for now, before in zip((*images, *others), kept, strict=True):  # none was changed
        assert np.array_equal(np.asarray(now), np.asarray(before))
