"""The guarded loss: the user's criterion on clean samples, guidance and unlearning on triggered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from cgd_wrap.config import CGDConfig
from cgd_wrap.functional import LossTerms, Normalisers
from cgd_wrap.functional.loss_terms import terms_by_share, total_and_terms, weighed_shares
from cgd_wrap.processes import is_distributed
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.batch_checks import UNTAGGED, BatchChecks, refuse_second_call
from cgd_wrap.train.criteria import Criterion, take_apart
from cgd_wrap.train.criterion_names import keep_names
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.tags import ReadTargets, SampleTable, is_tagged

__all__ = ["CGDLoss", "Criterion", "clean_share"]


def clean_share(table: SampleTable, indices: Int[Tensor, "m"]) -> Float[Tensor, "classes"]:
    """Share of an epoch's indices that are clean samples of each class, times the class' weight."""
    labels, clean = table.tensors["labels"][indices], table.tensors["clean"][indices]
    counts = torch.bincount(labels[clean], minlength=table.num_classes)
    return counts * table.tensors["class_weight"] / max(len(indices), 1)


class CGDLoss(nn.Module):
    """The guarded loss: CGD's loss for tagged targets, the user's criterion for ordinary targets.

    Tagged samples get :func:`~cgd_wrap.functional.loss.cgd_loss`; its clean part has the options of
    the criterion (label smoothing, class weights). Ordinary targets, as in evaluation loops, get
    the criterion itself. The loss is computed in fp32, whatever type the outputs have. In a
    checkpoint the criterion's tensors keep the names that they have without the guard.

    A criterion with ``reduction="sum"`` makes a sum of the guarded loss, too: the mean, times what
    the criterion's mean is divided by.

    Under ``torch.compile`` the batches aren't checked, but that ``strict`` still ends a step
    without tags, with a RuntimeError.

    Args:
        table: table of what the loss knows of each sample.
        share: for each class, the share of an epoch's samples that are clean samples of the class,
            from :func:`clean_share`; divides the loss under ``normalise_by="expectation"``.
        config: weights and temperature of the loss; a weight of None becomes the weight for a
            trained model.
        criterion: ``nn.CrossEntropyLoss``, any criterion with ``reduction``, a function with a
            ``reduction`` argument, or one that ``torch.func.vmap`` can take apart by sample.
            Default: cross entropy. Of a guarded loss, its criterion is taken.
        epochs: indices that the guard's sampler draws, which show if another draws. None: not
            known.

    Attributes:
        reduction: what the criterion makes of the samples' losses, ``"mean"`` or ``"sum"``.
        last_terms: the parts of the last guarded loss, detached, on the device.

    Raises:
        TypeError: the criterion can't be computed sample by sample.
        ValueError: the criterion is no mean or sum over samples.
    """

    def __init__(
        self,
        table: SampleTable,
        share: Float[Tensor, "classes"],
        config: CGDConfig,
        criterion: Criterion | None = None,
        *,
        epochs: EpochIndices | None = None,
    ) -> None:
        super().__init__()
        self.table, self.share, self.config = table, share, config.decided(trained=True)
        if isinstance(criterion, CGDLoss):
            criterion = criterion.criterion
        self.criterion: Any = nn.CrossEntropyLoss() if criterion is None else criterion
        self._apart = take_apart(self.criterion, table.num_classes)
        self.reduction = self._apart.reduction
        self._clean_share = float(share.sum())
        self._checks = BatchChecks(strict=config.strict, epochs=epochs)
        keep_names(self)
        self.last_terms: LossTerms | None = None

    @property
    def untagged_batches(self) -> int:
        """Number of training batches without any tag, among the batches looked at."""
        return self._checks.untagged_batches

    @classmethod
    def for_result(
        cls,
        result: ScanResult,
        criterion: Criterion | None = None,
        config: CGDConfig | None = None,
        *,
        table: SampleTable | None = None,
    ) -> CGDLoss:
        """Make the loss of a scanned data set: ``CGDLoss.for_result(guard.result, criterion)``.

        Args:
            result: result of the scan. Its guidance share multiplies the guidance weight if the
                configuration says so.
            criterion: criterion of the user's loop. Default: cross entropy.
            config: configuration of the training. Default: that of the scan.
            table: table of samples, of the same result and configuration. Default: made here.
        """
        config = (config or result.config).decided(trained=result.trained)
        table = table or SampleTable.for_result(result, config)
        earned = result.guidance_share if config.guidance_by_agreement else 1.0
        assert config.guidance_weight is not None
        config = config.replace(guidance_weight=config.guidance_weight * earned)
        epochs = EpochIndices.for_result(result, config, table)
        return cls(table, clean_share(table, epochs.of(0)), config, criterion, epochs=epochs)

    def forward(
        self, outputs: Float[Tensor, "b classes"], targets: Shaped[Tensor, "b *rest"]
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch, a scalar in nats.

        Raises:
            ValueError: the outputs have another number of classes; training targets are floats,
                which have lost the sample's index; the same outputs come again with other tags,
                as in mixup by two calls; or, with ``strict``, a training batch has no tags, or
                another sampler than the guard's draws the samples.
        """
        training = self._trains(outputs)
        if targets.ndim != 1 or targets.is_floating_point():
            if training:
                raise ValueError(
                    f"the guarded loss got targets of shape {list(targets.shape)} and type "
                    f"{targets.dtype}, which no longer say which samples they belong to. Turn off "
                    "mixup and CutMix (timm: --mixup 0 --cutmix 0) and soft or one-hot labels."
                )
            return self._plain(outputs, targets)
        if torch.compiler.is_compiling():
            return self._compiled(outputs, targets, training=training)
        if training:
            refuse_second_call(outputs, targets)
            tags = self._checks.look(targets)
        else:
            tags = int(is_tagged(targets).sum())
        if tags == 0:
            return self._plain(outputs, targets)
        return self._guarded(outputs, targets, all_tagged=tags == len(targets))

    def labels(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Turn tagged targets into the given labels, for a loop's own training accuracy."""
        return self.table.decode(targets)

    def terms(self, outputs: Float[Tensor, "b classes"], targets: Int[Tensor, "b"]) -> LossTerms:
        """Compute the parts of the loss over the tagged samples; untagged samples don't count."""
        self._check_classes(outputs)
        with _in_float32(outputs.device):
            outputs, batch = outputs.float(), self.table.read(targets)
            terms = terms_by_share(
                outputs, *self._known(outputs, batch), temperature=self.config.temperature,
                epsilon=self.config.epsilon, clean_nll=self._own_losses(outputs, batch),
            )  # fmt: skip
        self.last_terms = LossTerms(*(term.detach() for term in terms))
        return terms

    def _guarded(self, outputs: Tensor, targets: Tensor, *, all_tagged: bool = False) -> Tensor:
        """The parts of the loss over tagged samples, and the criterion over untagged samples."""
        self._check_classes(outputs)
        with _in_float32(outputs.device):
            outputs, batch = outputs.float(), self.table.read(targets, all_tagged=all_tagged)
            losses = self._own_losses(outputs, batch)
            total, parts = total_and_terms(
                outputs, *self._known(outputs, batch), temperature=self.config.temperature,
                epsilon=self.config.epsilon, clean_nll=losses,
            )  # fmt: skip
            self.last_terms = LossTerms(*parts.unbind())
            if batch.tagged is None:
                return total
            losses = self._losses(outputs, batch) if losses is None else losses
            return total + self._untagged_part(outputs, batch, batch.tagged, losses)

    def _compiled(self, outputs: Tensor, targets: Tensor, *, training: bool) -> Tensor:
        """The loss without a branch that depends on values: no graph break."""
        tagged = is_tagged(targets).any()
        if training:
            if self.config.strict:
                torch._assert_async(tagged, UNTAGGED)
            return self._guarded(outputs, targets)
        if outputs.ndim != 2 or outputs.shape[1] != self.table.num_classes:
            return self._plain(outputs, targets)
        plain = self._plain(outputs, torch.where(tagged, torch.zeros_like(targets), targets))
        return torch.where(tagged, self._guarded(outputs, targets), plain)

    def _known(self, outputs: Tensor, batch: ReadTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, the teacher's logits and shares of a batch's samples, all of which may count."""
        table, labels = self.table.on(outputs.device), batch.labels
        shares = table["shares"].index_select(1, batch.indices)
        if batch.tagged is not None:
            # Those of untagged samples carry no weight here, but may lie outside the classes.
            labels, shares = labels.masked_fill(~batch.tagged, 0), shares * batch.tagged
        alpha, beta = self.config.guidance_weight, self.config.unlearning_weight
        assert alpha is not None
        assert beta is not None
        shares = weighed_shares(
            shares, self._divisors(outputs, batch.tagged, labels, shares),
            alpha=alpha, beta=beta, temperature=self.config.temperature,
        )  # fmt: skip
        row = table["teacher_row"].index_select(0, batch.indices)
        return labels, table["teacher"].index_select(0, row), shares

    def _divisors(
        self, outputs: Tensor, tagged: Tensor | None, labels: Tensor, shares: Tensor
    ) -> Tensor | float:
        """What the parts of the loss are divided by: one number for all, or one for each."""
        if self.config.normalise_by == "expectation":
            # The loss is divided by the weight of the clean samples that a batch holds on average.
            # A sum is that loss times the weight of the batch, if all its samples were clean.
            # (In float32, whatever the default is.)
            count = len(labels) if tagged is None else tagged.sum().float()
            if self._apart.is_plain(self.criterion, outputs.shape[1]):
                return count * self._clean_share
            share = self.share.to(outputs.device)
            if self.reduction == "sum":
                return share.sum()
            return count * (share * self._apart.weights(self.criterion, outputs)).sum()
        weight = self._apart.weights(self.criterion, outputs)[labels]
        clean, pull, push = shares
        counts = torch.stack(
            [
                *Normalisers.of_batch(clean * weight, pull, push),
                (weight if tagged is None else tagged * weight).sum(),
            ]
        )
        if self._trains(outputs) and is_distributed():  # an evaluation may run on one process alone
            # DDP averages the gradients of the processes. With counts over all processes, divided
            # by the number of processes, the average is the gradient of the whole batch, however
            # the batch was dealt to the processes.
            dist.all_reduce(counts)
            counts = counts / dist.get_world_size()
        # A sum is the mean times what the criterion's mean over all these samples is divided by.
        return counts[:3] / counts[3] if self.reduction == "sum" else counts[:3]

    def _own_losses(self, outputs: Tensor, batch: ReadTargets) -> Tensor | None:
        """The criterion's losses; None where they are the cross entropy, which needs no call."""
        plain = self._apart.is_plain(self.criterion, outputs.shape[1])
        return None if plain else self._losses(outputs, batch)

    def _losses(self, outputs: Tensor, batch: ReadTargets) -> Tensor:
        """The criterion's loss of each sample, with the given label or the untagged target."""
        return self._apart.losses(self.criterion, outputs, batch.labels)

    def _untagged_part(
        self, outputs: Tensor, batch: ReadTargets, tagged: Tensor, losses: Tensor
    ) -> Tensor:
        """The criterion over the untagged samples of a batch; 0 if all are tagged."""
        total = losses.masked_fill(tagged, 0.0).sum()
        if self.reduction == "sum":
            return total
        labels = batch.labels.masked_fill(tagged, 0)
        weights = self._apart.weights(self.criterion, outputs)
        # A label outside the classes is one that the criterion ignores.
        inside = ~tagged & (labels >= 0)
        divisor = (weights[labels.clamp(min=0)] * inside).sum()
        return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))

    def _trains(self, outputs: Tensor) -> bool:
        return self.training and outputs.requires_grad and torch.is_grad_enabled()

    def _check_classes(self, outputs: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.table.num_classes:
            raise ValueError(
                f"the model's outputs have shape {list(outputs.shape)}, but the guard knows "
                f"{self.table.num_classes} classes: expected [B, {self.table.num_classes}]"
            )

    def _plain(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.criterion(outputs, targets)
        return loss


def _in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """No mixed precision inside."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
