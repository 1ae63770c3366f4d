from __future__ import annotations

import numpy as np

from cgd_wrap.demo.painting import tint
from cgd_wrap.demo.shapes import ShapesDataset


def test_tint_is_neutral_at_zero_and_warms_above():
    image = np.asarray(ShapesDataset(1, seed=5)[0][0])
    np.testing.assert_array_equal(tint(image, 0.0), image)
    warm = tint(image, 0.8).astype(int)
    assert (warm[..., 0] >= image[..., 0]).all()
    assert (warm[..., 2] <= image[..., 2]).all()
