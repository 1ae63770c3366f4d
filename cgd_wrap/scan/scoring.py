"""Scoring batches of images on a device, in smaller ones if memory runs out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cgd_wrap.data.failures import ran_out_of_memory
from cgd_wrap.errors import CGDError
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)

BATCH_MULTIPLE = 16  # for multiples of this batch size, 1 to 4 threads gave the same bits


@runtime_checkable
class Scorer(Protocol):
    """A function that is computed for every image: images on the device -> a vector per image."""

    def __call__(
        self, images: Shaped[Tensor, "b ..."], *, full_precision: bool
    ) -> Float[Tensor, "b d"]:
        """Score a batch; in fp32 throughout where ``full_precision``."""


class Scoring:
    """Scores batches of images on a device.

    Args:
        device: where images are scored.
        batch_size: most images a batch; halved as long as memory runs out. None: 128 on a CPU, 512
            on a GPU.
    """

    def __init__(self, device: torch.device, batch_size: int | None = None) -> None:
        self.device = device
        self.batch_size = batch_size or (512 if device.type == "cuda" else 128)

    def scores(
        self, score: Scorer, images: Shaped[Tensor, "b ..."], *, full_precision: bool = False
    ) -> Float[Tensor, "b d"]:
        """Score images; the result is on the device, and may still be on its way.

        Raises:
            CGDError: memory runs out for a single image.
        """
        parts, done = [], 0
        while done < len(images):  # not a split: the batch size may shrink on the way
            batch = images[done : done + self.batch_size]
            try:
                padded = _padded(batch).to(self.device, non_blocking=True)
                with torch.no_grad():
                    found = score(padded, full_precision=full_precision)[: len(batch)]
            except (RuntimeError, MemoryError) as error:
                self.batch_size = len(batch)
                self.take_smaller_batches(error)
                continue
            parts.append(found)
            done += len(batch)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def take_smaller_batches(self, error: Exception) -> None:
        """Halve the batches if an error says that memory ran out; raise any other error again."""
        if not ran_out_of_memory(error):
            raise error
        if self.batch_size == 1:
            raise CGDError(
                f"memory ran out on {self.device} even with a batch size of 1: {error}"
            ) from error
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("memory ran out; going on with batches of %d.", self.batch_size)


def _padded(images: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "padded ..."]:
    """Fill a batch up to a multiple of ``BATCH_MULTIPLE`` by repeating its last image.

    CPU kernels cut other batches by the number of threads, and then round differently; a process
    that a launcher started has fewer threads than a process that was started alone.
    """
    missing = -len(images) % BATCH_MULTIPLE
    if missing == 0:
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
