"""Leaving global state as the user has it: random streams, and torch's modes and defaults."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


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
    """Seed torch's global streams for dropout and initialisers; restore them on leaving.

    The streams are those of the CPU and of the CUDA device in use. ``torch.manual_seed`` would
    seed those of all other devices, too, which nobody restores.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(int(seed))
        if devices:
            torch.cuda.manual_seed(int(seed))
        yield


@contextmanager
def plain_torch(dtype: torch.dtype | None = torch.float32) -> Iterator[None]:
    """Compute as in a new process, whatever the user has set; on leaving, all is as it was.

    - Gradients are on, and inference mode and autocast are off.
    - New tensors are on the CPU, and of type ``dtype``, unless they are told otherwise.

    What else the user may have set stays: deterministic algorithms, anomaly detection, numbers of
    threads.

    Args:
        dtype: default type of new floats; None leaves the user's, which the user's model may have.
    """
    users_dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        # Only what the user has changed is set: a default device costs time at each call of torch.
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype not in (None, users_dtype):
            stack.callback(torch.set_default_dtype, users_dtype)
            torch.set_default_dtype(dtype)
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Do both: :func:`kept_rng` and :func:`plain_torch`."""
    with kept_rng(), plain_torch():
        yield
