"""Leaving the user's random streams as they were; the library's own choices have other streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_rng() -> Iterator[None]:
    """Restore, on leaving, the global CPU random streams of torch, numpy and ``random``.

    Needed wherever a sample of the user's dataset is read outside the user's training loop: the
    user's augmentation draws from these streams, and guarding must not change what is drawn.
    """
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global streams for dropout and initialisers; restore them on leaving."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
