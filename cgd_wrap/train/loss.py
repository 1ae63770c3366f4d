"""The guarded loss: the user's criterion on clean samples, guidance and unlearning on triggered."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from cgd_wrap.config import CGDConfig
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.functional import LossTerms, Normalisers, SampleWeights, cgd_loss_terms
from cgd_wrap.processes import is_distributed
from cgd_wrap.split.result import ScanResult
from cgd_wrap.train.criteria import Criterion, class_weight, per_sample
from cgd_wrap.train.sampler import EpochIndices
from cgd_wrap.train.tags import SampleTable, is_tagged, tagged_index

logger = escaped_logger(__name__)

__all__ = ["CGDLoss", "Criterion", "clean_share"]
CHECK_EVERY = 100  # steps between checks for untagged batches on a GPU, as a check waits


def clean_share(table: SampleTable, indices: Int[Tensor, "m"]) -> Float[Tensor, "classes"]:
    """Share of an epoch's indices that are clean samples of each class, in [0, 1]."""
    labels, clean = table.tensors["labels"][indices], table.tensors["clean"][indices]
    return torch.bincount(labels[clean], minlength=table.num_classes) / max(len(indices), 1)


class CGDLoss(nn.Module):
    """The guarded loss: CGD's loss for tagged targets, the user's criterion for ordinary targets.

    Tagged samples get :func:`~cgd_wrap.functional.loss.cgd_loss`; its clean part has the options of
    the criterion (label smoothing, class weights). Ordinary targets, as in evaluation loops, get
    the criterion itself. The loss is computed in fp32, whatever type the outputs have. In a
    checkpoint the criterion's tensors keep the names that they have without the guard.

    Args:
        table: table of what the loss knows of each sample.
        share: for each class, the share of an epoch's samples that are clean samples of the class,
            from :func:`clean_share`; divides the loss under ``normalise_by="expectation"``.
        config: weights and temperature of the loss; a weight of None becomes the weight for a
            trained model.
        criterion: ``nn.CrossEntropyLoss``, any criterion with ``reduction``, a function with a
            ``reduction`` argument, or one that ``torch.func.vmap`` can take apart by sample.
            Default: cross entropy.

    Attributes:
        last_terms: the parts of the last guarded loss, detached, on the device.
        untagged_batches: number of training batches without any tag, among the batches checked.
    """

    def __init__(
        self,
        table: SampleTable,
        share: Float[Tensor, "classes"],
        config: CGDConfig,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        self.table, self.share, self.config = table, share, config.decided(trained=True)
        self.criterion: Any = nn.CrossEntropyLoss() if criterion is None else criterion
        self._prefix = ""
        self.register_state_dict_post_hook(_leave_out_criterion)
        self.register_load_state_dict_pre_hook(_put_in_criterion)
        self.register_load_state_dict_post_hook(_name_faults_without_criterion)
        self.last_terms: LossTerms | None = None
        self.untagged_batches = 0
        self._steps = 0

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
        return cls(table, clean_share(table, epochs.of(0)), config, criterion)

    def forward(
        self, outputs: Float[Tensor, "b classes"], targets: Shaped[Tensor, "b *rest"]
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch, a scalar in nats.

        Raises:
            ValueError: the outputs have another number of classes; training targets are floats,
                which have lost the sample's index; or, with ``strict``, a training batch has no
                tags.
        """
        training = self.training and outputs.requires_grad
        if targets.ndim != 1 or targets.is_floating_point():
            if training:
                raise ValueError(
                    f"the guarded loss got targets of shape {list(targets.shape)} and type "
                    f"{targets.dtype}, which no longer say which samples they belong to. Turn off "
                    "mixup and CutMix (timm: --mixup 0 --cutmix 0) and soft or one-hot labels."
                )
            return self._plain(outputs, targets)
        if not training:
            tagged = is_tagged(targets)
            if not bool(tagged.any()):
                return self._plain(outputs, targets)
        elif self._is_untagged(targets):
            return self._plain(outputs, targets)
        return self.terms(outputs, targets).total + self._untagged_part(outputs, targets)

    def terms(self, outputs: Float[Tensor, "b classes"], targets: Int[Tensor, "b"]) -> LossTerms:
        """Compute the parts of the loss over the tagged samples; untagged samples don't count."""
        if outputs.ndim != 2 or outputs.shape[1] != self.table.num_classes:
            raise ValueError(
                f"the model's outputs have shape {list(outputs.shape)}, but the guard knows "
                f"{self.table.num_classes} classes: expected [B, {self.table.num_classes}]"
            )
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = outputs.float()
            tagged, index = is_tagged(targets), tagged_index(targets)
            table = self.table.on(outputs.device)
            labels = table["labels"][index]
            clean, triggered = table["clean"][index] & tagged, table["triggered"][index] & tagged
            pull = table["guidance_weight"][index] * triggered
            push = table["triggered_weight"][index] * triggered
            by_class = class_weight(self.criterion, outputs)
            alpha, beta = self.config.guidance_weight, self.config.unlearning_weight
            assert alpha is not None
            assert beta is not None
            terms = cgd_loss_terms(
                outputs, labels, table["teacher"][table["teacher_row"][index]], clean, triggered,
                alpha=alpha, beta=beta,
                temperature=self.config.temperature, epsilon=self.config.epsilon,
                weights=SampleWeights(guidance=pull, unlearning=push),
                clean_nll=self._per_sample(outputs, labels),
                normalisers=self._normalisers(
                    tagged, clean * by_class[labels], pull, push, by_class,
                    over_processes=self.training and outputs.requires_grad and is_distributed(),
                ),
            )  # fmt: skip
        self.last_terms = LossTerms(*(term.detach() for term in terms))
        return terms

    def _normalisers(
        self,
        tagged: Tensor,
        clean: Tensor,
        pull: Tensor,
        push: Tensor,
        by_class: Tensor,
        *,
        over_processes: bool,
    ) -> Normalisers:
        if self.config.normalise_by == "expectation":
            expected = tagged.sum() * (self.share.to(clean.device) * by_class).sum()
            return Normalisers(expected, expected, expected)
        counts = Normalisers.of_batch(clean, pull, push)
        if not over_processes:  # an evaluation may run on one process alone
            return counts
        # DDP averages the gradients of the processes. With counts over all processes, divided by
        # the number of processes, the average is the gradient of the whole batch, however the
        # batch was dealt to the processes.
        total = torch.stack(list(counts))
        dist.all_reduce(total)
        return Normalisers(*(total / dist.get_world_size()).unbind())

    def _per_sample(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return per_sample(self.criterion)(outputs, labels)

    def _is_untagged(self, targets: Tensor) -> bool:
        """Whether a training batch has no tag; on a GPU, only some batches are checked.

        Each check waits for the GPU.
        """
        self._steps += 1
        look = targets.device.type == "cpu" or self.config.strict
        if not (look or self._steps % CHECK_EVERY == 1) or bool(is_tagged(targets).any()):
            return False
        message = (
            "a training batch without tags reached the guarded loss: it is trained on unguarded. "
            "Load guard.dataset or guard.balanced_view, or use guard.protect."
        )
        if self.config.strict:
            raise ValueError(message)
        if not self.untagged_batches:
            logger.warning("%s%s", message[0].upper(), message[1:])
        self.untagged_batches += 1
        return True

    def _untagged_part(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The criterion's mean over the untagged samples of a batch; 0 if all are tagged."""
        untagged = ~is_tagged(targets)
        labels = torch.where(untagged, targets.long(), torch.zeros_like(targets, dtype=torch.long))
        weight = class_weight(self.criterion, outputs.float())[labels] * untagged
        losses = torch.where(untagged, self._per_sample(outputs.float(), labels), 0.0)
        total = weight.sum()
        return losses.sum() / torch.where(total > 0, total, torch.ones_like(total))

    def _plain(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.criterion(outputs, targets)
        return loss


# The criterion is the loss' submodule ``criterion``. In a checkpoint, the criterion's tensors have
# the names that they would have without the guard, so that guarded and unguarded modules can load
# each other's checkpoints.


def _leave_out_criterion(
    loss: CGDLoss, state: MutableMapping[str, Any], prefix: str, *_: Any
) -> None:
    """After saving: take ``criterion.`` out of the names of the saved tensors."""
    inner = f"{prefix}criterion."
    saved = {name: state.pop(name) for name in list(state) if name.startswith(inner)}
    state.update({prefix + name.removeprefix(inner): value for name, value in saved.items()})


def _put_in_criterion(loss: CGDLoss, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: put ``criterion.`` into the names of the given tensors."""
    loss._prefix, inner = prefix, f"{prefix}criterion."
    given = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    state.update({inner + name.removeprefix(prefix): value for name, value in given.items()})


def _name_faults_without_criterion(loss: CGDLoss, incompatible: Any) -> None:
    """After loading: take ``criterion.`` out of the names of missing and unexpected tensors."""
    prefix, inner = loss._prefix, f"{loss._prefix}criterion."
    for names in incompatible:
        names[:] = [prefix + n.removeprefix(inner) if n.startswith(inner) else n for n in names]
