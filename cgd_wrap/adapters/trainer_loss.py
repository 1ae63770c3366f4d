"""The guarded loss in the form that the Hugging Face Trainer takes a loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cgd_wrap.models.outputs import logits_of
from cgd_wrap.train.loss import CGDLoss

IGNORED = -100  # label of what the Trainer doesn't count as items of a batch


class TrainerLoss:
    """The guarded loss as a Trainer's ``compute_loss_func``, exact under gradient accumulation.

    The Trainer adds up ``loss(batch) * batch size / num_items_in_batch`` over the batches of a
    step. The sum is the loss of the whole step, with ``normalise_by="expectation"`` exact to the
    last sample. In evaluation, where labels are ordinary, the loss is the criterion itself.

    Args:
        loss: the guarded loss, from :meth:`CGDGuard.loss`.

    Raises:
        ValueError: the loss is a sum over samples.
    """

    def __init__(self, loss: CGDLoss) -> None:
        if loss.reduction != "mean":
            raise ValueError(
                f'a criterion with reduction="{loss.reduction}" can\'t be used in a Trainer, which '
                'takes the mean over the samples of a step itself: pass one with reduction="mean"'
            )
        self.loss = loss
        self._sums: Tensor | None = None

    def __call__(
        self,
        outputs: Any,
        labels: Shaped[Tensor, "b *rest"] | None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the share that a batch has in the loss of its step, in nats.

        Args:
            outputs: the model's outputs: logits [B, C], or an object with ``.logits``.
            labels: tags in training, class numbers in evaluation.
            num_items_in_batch: number of samples in all batches of the step (and in all processes,
                if the Trainer says so), repeated for each GPU under DataParallel; or None.

        Raises:
            ValueError: there are no labels; or as for :class:`CGDLoss`.
        """
        if labels is None:
            raise ValueError(
                "the batch has no 'labels', which the guarded loss needs: name them so in the "
                "dataset or in the data collator"
            )
        logits, before = logits_of(outputs), self.loss.last_terms
        loss = self.loss(logits, labels)
        scale: Any = 1
        if num_items_in_batch is not None:
            items = torch.as_tensor(num_items_in_batch, device=loss.device)
            # The Trainer multiplies by the number of copies, to suit models that return a loss.
            scale = (labels != IGNORED).sum() / items.flatten()[0] / items.numel()
        terms = self.loss.last_terms
        if terms is not None and terms is not before and logits.requires_grad:
            part = torch.stack(list(terms)) * scale
            self._sums = part if self._sums is None else self._sums + part
        scaled: Tensor = loss * scale
        return scaled

    @property
    def sum(self) -> Float[Tensor, ""] | None:
        """The loss summed up since the last :meth:`take_sums`, if any."""
        return None if self._sums is None else self._sums.sum()

    def take_sums(self) -> Float[Tensor, "3"] | None:
        """Sums of the loss' parts (clean, guidance, unlearning) since the last call, if any."""
        sums, self._sums = self._sums, None
        return sums
