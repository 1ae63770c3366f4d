"""Made-up batches, on which it is found out what a criterion computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cgd_wrap.randomness import kept_rng, seeded

MOST_PROBED = 256  # samples of a batch; its classes, if there are fewer


@dataclass(frozen=True)
class Trial:
    """A made-up batch.

    Attributes:
        outputs: values between 0 and 1, which criteria of logits and of probabilities can take.
        labels: class numbers, of all classes or spread over them.
    """

    outputs: Float[Tensor, "b classes"]
    labels: Int[Tensor, "b"]

    @classmethod
    def of_size(cls, size: int, classes: int, device: torch.device) -> Trial:
        """Make a batch of so many samples."""
        generator = torch.Generator().manual_seed(size)
        outputs = torch.rand(size, classes, generator=generator, device="cpu").clamp(0.01, 0.99)
        labels = torch.arange(size, device="cpu") * classes // size
        return cls(outputs.to(device), labels.to(device))

    def fitted(self) -> Trial:
        """The batch as a trained model answers it, by logits: all losses but the first are small.

        Some criteria do otherwise where the mean is below a certain loss, such as "flooding".
        """
        right = torch.nn.functional.one_hot(self.labels, self.outputs.shape[1])
        sure = torch.arange(len(self.labels), device=self.labels.device)[:, None]
        return replace(self, outputs=self.outputs + 4 * sure * right)

    def run(self, way: Callable[[Any, Tensor, Tensor], Tensor], criterion: Any) -> Tensor:
        """Compute a criterion in some way, without a trace in the criterion or random streams."""
        if isinstance(criterion, nn.Module):
            with suppress(Exception):  # what can't be copied is used itself
                criterion = copy.deepcopy(criterion)
        without_autocast = torch.autocast(self.outputs.device.type, enabled=False)
        with torch.no_grad(), kept_rng(), seeded(0), without_autocast:
            return way(criterion, self.outputs, self.labels)


def trials_of(classes: int, device: torch.device) -> list[Trial]:
    """Batches to try a criterion on: one of all classes, and small ones.

    None has as many samples as classes: a criterion of soft labels would take the labels for such.
    In small batches class weights can't cancel out by chance, as they may in a large one.
    """
    every = min(classes + 1, MOST_PROBED + (classes == MOST_PROBED))
    sizes = [every, *(size for size in (2, 3, 4, 5) if size != classes)]
    return [Trial.of_size(size, classes, device) for size in sizes]


def devices_of(criterion: Any) -> Iterator[torch.device]:
    """Where the criterion's own tensors lie; otherwise the CPU and, if there is one, the GPU."""
    if isinstance(criterion, nn.Module):
        for tensor in (*criterion.parameters(), *criterion.buffers()):
            yield tensor.device
            return
    yield torch.device("cpu")
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
