from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def test_pictures_of_any_size_and_mode_become_inputs():
    from cgd_wrap.drill.pictures import ToInput

    grey = Image.fromarray(np.arange(150, dtype=np.uint8).reshape(10, 15))
    assert ToInput((8, 16))(grey.convert("RGB")).shape == (3, 8, 16)
    steady = ToInput((10, 15), channels=1)(grey)
    assert torch.equal(steady[0], torch.from_numpy(np.array(grey)) / 127.5 - 1)
    moved = {ToInput((10, 15), 1, moved_by=2)(grey).numpy().tobytes() for _ in range(20)}
    assert len(moved) > 3  # one pixel each way: nine places
    assert len(moved) <= 9
