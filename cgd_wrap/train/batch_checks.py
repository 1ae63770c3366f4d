"""Checking the batches that reach the guarded loss in training: faults that no value shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from cgd_wrap.escaping import escaped_logger
from cgd_wrap.processes import is_distributed
from cgd_wrap.train.epoch_indices import EpochIndices, Orders
from cgd_wrap.train.tags import TAG, is_tagged

logger = escaped_logger(__name__)

CHECK_EVERY = 100  # steps between looks at the batches on a GPU, as a look waits
LOOKS = 4  # steps in succession that are looked at
STRAY_BATCHES = 3  # that tell another sampler from a few batches picked by hand
COPIES = ("ToCopyBackward0", "CloneBackward0")  # outputs in another type are the same outputs

UNTAGGED = (
    "a training batch without tags reached the guarded loss: it is trained on unguarded. "
    "Load guard.dataset or guard.balanced_view, or use guard.protect."
)
MIXED = (
    "the guarded loss got the same outputs twice with other targets, as in mixup or CutMix by two "
    "calls: lam * criterion(outputs, a) + (1 - lam) * criterion(outputs, b). A blended image "
    "belongs to no single sample, so the guard can't know it: turn mixup and CutMix off."
)
STRAY = (
    "training samples reach the guarded loss that the guard's sampler didn't draw, such as sample "
    "{}: another tool (such as Opacus, Ray Train, a second DistributedSampler) has put a sampler "
    "of its own in place. Classes are not balanced, clean images are not exposed, and held-out "
    "samples are trained on. Give that tool guard.balanced_view as its dataset, and use "
    "guard.loss(criterion); or call guard.protect with the loader that the tool has made."
)
FOREIGN = (
    "the guarded loss got the tag of sample {}, and its data set has {} samples: loader and "
    "criterion are of two guards. Take both from one call of guard.protect."
)


class BatchChecks:
    """Checks training batches; a copy starts anew, and doesn't hear of the guard's samplers.

    On a GPU only some batches are looked at, as each look waits for the GPU.

    Args:
        strict: raise an error where otherwise a warning is given, once.
        epochs: the indices that the guard's sampler draws; None: not known.

    Attributes:
        untagged_batches: number of training batches without any tag, among the batches looked at.
    """

    def __init__(self, *, strict: bool, epochs: EpochIndices | None = None) -> None:
        self.strict, self.epochs = strict, epochs
        self.untagged_batches = 0
        self._steps = self._stray_batches = 0
        self._seen: set[int] = set()
        self._drawn = False

    def look(self, targets: Int[Tensor, "b"]) -> int | None:
        """Look at a training batch, if it is its turn; return the number of its tags, or None.

        Raises:
            ValueError: the batch is of another guard's data set; or, with ``strict``, it has no
                tags, or another sampler draws the samples.
        """
        self._steps += 1
        always = targets.device.type == "cpu" or self.strict
        if not always and (self._steps - 1) % CHECK_EVERY >= LOOKS:
            return None
        # On so few numbers NumPy takes a fraction of torch's time.
        numbers = targets.cpu().numpy().reshape(-1)
        tags = numbers >= TAG
        index = numbers[tags].astype(np.int64, copy=False) - TAG
        if len(index):
            if self.epochs is not None and int(index.max()) >= len(self.epochs.clean):
                raise ValueError(FOREIGN.format(int(index.max()), len(self.epochs.clean)))
            self._look_for_strays(index)
            return len(index)
        if self.strict or not self.untagged_batches:
            self._say(UNTAGGED)
        self.untagged_batches += 1
        return 0

    def _look_for_strays(self, index: np.ndarray) -> None:
        """Notice over several batches that samples weren't drawn by the guard's sampler.

        As long as no order was made for the guard's samplers and views, they have drawn no sample;
        afterwards, the samples that they never draw tell.
        """
        if self.epochs is None:
            return
        # A main process may send others their batches, and then alone asks the sampler.
        drawn = self.epochs.orders.made or (is_distributed() and dist.get_rank() > 0)
        if drawn != self._drawn:
            self._drawn, self._stray_batches, self._seen = drawn, 0, set()
        strays = index[self.epochs.left_out[index]] if drawn else index
        if not len(strays):
            return
        self._stray_batches += not self._seen.issuperset(strays.tolist())
        self._seen.update(strays.tolist())
        if self._stray_batches == STRAY_BATCHES:
            self.epochs = None  # once is enough
            self._say(STRAY.format(int(strays.min())))

    def _say(self, message: str) -> None:
        if self.strict:
            raise ValueError(message)
        logger.warning("%s%s", message[0].upper(), message[1:])

    def __getstate__(self) -> dict[str, Any]:
        deaf = self.epochs and replace(self.epochs, orders=Orders(made=True))
        return vars(BatchChecks(strict=self.strict, epochs=deaf)) | {
            "untagged_batches": self.untagged_batches
        }


def refuse_second_call(outputs: Float[Tensor, "b classes"], targets: Int[Tensor, "b"]) -> None:
    """Refuse outputs that have had the loss of other tags: mixup by two calls.

    The targets are kept at the graph of the outputs, and go with it.

    Raises:
        ValueError: these outputs came before, with other tags.
    """
    node: Any = outputs.grad_fn
    number = outputs.output_nr
    while node is not None and node.name() in COPIES:
        node, number = node.next_functions[0]
    if node is None:
        return
    key = f"cgd_wrap targets of output {number}"
    before = node.metadata.setdefault(key, targets)
    if before is targets or before.shape != targets.shape:
        return
    tagged = is_tagged(before) & is_tagged(targets)
    if bool(((before != targets) & tagged).any()):
        raise ValueError(MIXED)
