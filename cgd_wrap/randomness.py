"""Leaving the user's random streams as they were; the library's own choices have other streams."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def stream_states() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of this process' global random streams: tensors of torch's, JSON of the others'."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    others = {
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(words), gauss],
    }
    return tensors, others


def set_stream_states(tensors: Mapping[str, torch.Tensor], others: Mapping[str, Any]) -> None:
    """Put back what :func:`stream_states` returned."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    name, keys, *rest = others["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss = others["python"]
    random.setstate((version, tuple(words), gauss))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global streams for dropout and initialisers; restore them on leaving."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
