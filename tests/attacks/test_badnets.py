from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgd_wrap.attacks import BadNets

sides = st.integers(8, 70)
modes = st.sampled_from(["RGB", "L"])
Draw = Callable[..., Image.Image]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_badnets_patch_at_32_pixels(picture: Draw) -> None:
    before, after = levels(picture(2)), levels(BadNets().trigger(picture(2)))
    checker = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert (after[-3:, -3:] == checker[..., None]).all()
    after[-3:, -3:] = before[-3:, -3:]
    assert (after == before).all()


@given(width=sides, height=sides, mode=modes, patch_size=st.integers(1, 8))
def test_badnets_changes_only_the_scaled_patch(
    picture: Draw, width: int, height: int, mode: str, patch_size: int
) -> None:
    image = picture(3, width, height, mode)
    before, after = levels(image), levels(BadNets(patch_size=patch_size).trigger(image))
    side = max(1, round(patch_size * min(width, height) / 32))
    patch = after[-side:, -side:]
    assert set(np.unique(patch)) <= {0, 255}
    assert (patch[0, 0] == 255).all()
    after[-side:, -side:] = before[-side:, -side:]
    assert (after == before).all()


def test_badnets_cells_grow_with_the_image(picture: Draw) -> None:
    small = levels(BadNets().trigger(picture(4, 32, 32)))[-3:, -3:]
    large = levels(BadNets().trigger(picture(4, 128, 96)))[-9:, -9:]
    assert (large == small.repeat(3, axis=0).repeat(3, axis=1)).all()
