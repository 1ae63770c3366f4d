"""The waves of the discrete cosine transform (DCT), of which some triggers are made."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64


def cosine_basis(bands: int, side: int) -> Float64[np.ndarray, "bands side"]:
    """Return the first waves of the orthonormal DCT-II over ``side`` samples, one wave per row.

    ``b_k(j) = sqrt((2 - [k = 0]) / side) cos(pi k (2 j + 1) / (2 side))``; wave k has k half-waves.

    Args:
        bands: number of waves; wave 0 is constant.
        side: number of samples; at least ``bands`` for the rows to be orthonormal.
    """
    wave = np.arange(bands)[:, None]
    phase = np.pi * wave * (2 * np.arange(side) + 1) / (2 * side)
    return np.sqrt(np.where(wave == 0, 1, 2) / side) * np.cos(phase)
