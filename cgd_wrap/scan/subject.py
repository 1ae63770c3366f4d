"""The data set and the models of a scan, and the three views of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from cgd_wrap.clip.several import Clips
from cgd_wrap.data import EvaluatedImages, ModelInputs, RawImages, SampleLayout, find_layout
from cgd_wrap.data.fingerprint import dataset_fingerprint, sample_fingerprint
from cgd_wrap.models.class_knowledge import measured_class_knowledge
from cgd_wrap.models.inputs import check_outputs, input_shape
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.supported import check_model
from cgd_wrap.models.weights import load_checkpoint
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.clip_pass import clip_pass
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.stored_logits import StoredLogits, bad_rows
from cgd_wrap.scan.suspicious_pass import given_suspicious_pass, trained_suspicious_pass


@dataclass(frozen=True, eq=False)
class Subject:
    """A data set with its labels, the model that is trained on it, and the judges of the labels.

    Attributes:
        model: the user's classifier.
        dataset: the user's dataset.
        layout: where a sample of the dataset holds image and label.
        class_names: names of the classes, in the order of the labels.
        labels: given labels, int64 [N].
        clip: as for :class:`~cgd_wrap.guard.CGDGuard`.
        clip_dataset: the same samples as raw images, or None.
        eval_dataset_view: the same samples as the model is evaluated on them, or None.
        suspicious: a suspicious model, the path of a suspicious model's checkpoint, or None.
    """

    model: nn.Module
    dataset: Any
    layout: SampleLayout
    class_names: Sequence[str]
    labels: Int[Tensor, "n"]
    clip: Clips
    clip_dataset: Any = None
    eval_dataset_view: Any = None
    suspicious: nn.Module | str | Path | None = None

    def raw_view(self) -> RawImages:
        """The images as CLIP sees them: RGB, before any transform."""
        if self.clip_dataset is None:
            return RawImages(self.dataset, self.layout)
        return RawImages(self.clip_dataset, find_layout(self.clip_dataset))

    def evaluated_view(self) -> tuple[Any, SampleLayout]:
        """Data set that the model is evaluated on, and where its samples hold image and label."""
        view = self.eval_dataset_view
        return (self.dataset, self.layout) if view is None else (view, find_layout(view))

    def evaluated_images(self) -> EvaluatedImages:
        """The image tensors of :meth:`evaluated_view`."""
        return EvaluatedImages(*self.evaluated_view())

    def identity(self, raw: RawImages) -> dict[str, Any]:
        """Fingerprint of the data, JSON values by field, for the cache."""
        return {
            "dataset": dataset_fingerprint(self.dataset),
            "samples": sample_fingerprint(raw),
            "labels": dataset_fingerprint(self.labels),
        }

    def input_shape(self, raw: RawImages) -> tuple[int, int, int]:
        """Find the shape [C, H, W] of the model's inputs, and check the number of its outputs.

        Raises:
            ValueError: the model, or the given suspicious model, doesn't fit the classes, is
                sharded or quantised, or has no values.
            TypeError: one of the two models doesn't return logits.
        """
        own = unwrapped(self.model)
        check_model(own)  # before it is copied for a suspicious model's checkpoint
        shape = input_shape(*self.evaluated_view(), raw, own)
        for model in (own, self.suspicious_model):
            if model is not None:
                check_model(model)
                check_outputs(model, shape, self.class_names)
        return shape

    @cached_property
    def suspicious_model(self) -> nn.Module | None:
        """The suspicious model that the user gave, loaded if the user gave a path; else None."""
        if isinstance(self.suspicious, (str, Path)):
            return load_checkpoint(self.model, self.suspicious)
        return None if self.suspicious is None else unwrapped(self.suspicious)

    def passes(
        self, raw: RawImages, shape: tuple[int, int, int], options: PassOptions
    ) -> tuple[StoredLogits, StoredLogits]:
        """Score every sample by CLIP and by the suspicious model.

        Args:
            raw: the images, from :meth:`raw_view`.
            shape: shape of the model's inputs, from :meth:`input_shape`.
            options: cache, device and configuration.
        """
        clip = clip_pass(self.clip, self.class_names, raw, options)
        given = self.suspicious_model
        if given is not None:
            view = self.evaluated_images()
            return clip, given_suspicious_pass(given, view, len(raw), options)
        readable = torch.ones(len(raw), dtype=torch.bool)
        readable[bad_rows(clip)] = False
        inputs = ModelInputs(raw, shape[1:], shape[0])
        return clip, trained_suspicious_pass(
            unwrapped(self.model), inputs, {"input": list(shape)},
            self.labels, readable.nonzero().squeeze(1), options,
        )  # fmt: skip

    def class_knowledge(
        self,
        raw: RawImages,
        shape: tuple[int, int, int],
        clean: Bool[Tensor, "n"],
        runtime: Runtime,
        *,
        seed: int,
        progress: bool,
    ) -> float:
        """Measure how well the model knows the classes, on the main process for all processes.

        Other processes may not have loaded the model's weights.

        Args:
            raw: the images, from :meth:`raw_view`.
            shape: shape of the model's inputs, from :meth:`input_shape`.
            clean: samples whose labels are to be trusted.
            runtime: device and processes; all processes get the same answer.
            seed: seed of the choice of samples.
            progress: draw a progress bar.
        """
        found = 0.0
        if runtime.is_main:
            found = measured_class_knowledge(
                unwrapped(self.model), self.evaluated_images(),
                lambda: ModelInputs(raw, shape[1:], shape[0]), shape, self.labels, clean,
                runtime, seed=seed, progress=progress,
            )  # fmt: skip
        return float(runtime.share(repr(found)))
