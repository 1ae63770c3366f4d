from __future__ import annotations

import numpy as np
import pytest

from cgd_wrap.demo.outlines import outlines
from cgd_wrap.demo.painting import CLASSES


@pytest.mark.parametrize("shape", CLASSES)
def test_outlines_fit_the_unit_circle(shape):
    filled = outlines(shape)[0]
    assert np.linalg.norm(filled, axis=1).max() <= 1.15
