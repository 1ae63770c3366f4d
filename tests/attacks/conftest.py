"""Fixtures of the attacks' tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pictures import Pictures, make_picture
from PIL import Image


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a random picture from (seed, width, height, mode)."""
    return make_picture


@pytest.fixture(scope="session")
def pictures() -> type[Pictures]:
    """Makes a data set of random pictures from (size, num_classes)."""
    return Pictures
