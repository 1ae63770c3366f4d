from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.attacks.cosine import cosine_basis


@given(bands=st.integers(1, 40), extra=st.integers(0, 30))
def test_the_basis_is_orthonormal(bands: int, extra: int) -> None:
    basis = cosine_basis(bands, bands + extra)
    assert np.abs(basis @ basis.T - np.eye(bands)).max() < 1e-9
    assert np.ptp(basis[0]) == 0
