"""The data set and the models of a scan, and the three views of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from cgd_wrap.clip.several import Clips
from cgd_wrap.data import (
    EvaluatedImages,
    ModelInputs,
    RawImages,
    RawView,
    SampleLayout,
    find_layout,
)
from cgd_wrap.data.fingerprint import dataset_fingerprint
from cgd_wrap.data.identity import dataset_identity, merged
from cgd_wrap.data.pixel_hashes import sample_fingerprint
from cgd_wrap.data.samples import fatal_probes
from cgd_wrap.data.unchanged import check_length
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.models.architecture import describe_model
from cgd_wrap.models.class_knowledge import measured_class_knowledge
from cgd_wrap.models.inputs import InputKind, check_outputs, input_shape, own_type
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.supported import check_model, check_numbers
from cgd_wrap.models.weights import load_checkpoint
from cgd_wrap.scan.kept_knowledge import kept_knowledge
from cgd_wrap.scan.pass_options import PassOptions


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
        unreadable: samples that are known to be bad, by index; nothing reads them.
        workers: the processes that read samples.
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
    unreadable: BadSamples = field(default_factory=dict)
    workers: Workers = HERE

    def raw_view(self) -> RawImages:
        """The images as CLIP sees them: RGB, before any transform."""
        if self.clip_dataset is None:
            return RawImages(self.dataset, self.layout, fatal=self.unreadable)
        fatal = self._fatal_in(self.clip_dataset)
        layout = find_layout(self.clip_dataset, fatal=fatal)
        return RawImages(self.clip_dataset, layout, fatal=fatal)

    def _fatal_in(self, view: Any) -> BadSamples:
        """Samples that must not be read to find out what another view of the samples is like."""
        return fatal_probes(view, self.workers, self.unreadable)

    def evaluated_view(self) -> tuple[Any, SampleLayout]:
        """Data set that the model is evaluated on, and where its samples hold image and label."""
        view = self.eval_dataset_view
        if view is None:
            return self.dataset, self.layout
        return view, find_layout(view, fatal=self._fatal_in(view))

    def evaluated_images(self) -> EvaluatedImages:
        """The image tensors of :meth:`evaluated_view`."""
        return EvaluatedImages(*self.evaluated_view())

    def identity(self, raw: RawImages) -> dict[str, Any]:
        """Describe the data, JSON values by field, for what is stored about them.

        Raises:
            DatasetError: the dataset has grown or shrunk since its labels were read.
        """
        check_length(raw, self.labels)
        given = {"dataset": self.dataset, "clip_dataset": self.clip_dataset}
        reading: dict[str, Any] = {"workers": self.workers, "known": self.unreadable}
        return merged(
            *(dataset_identity(one, n, **reading) for n, one in given.items() if one is not None),
            {
                "samples": sample_fingerprint(raw, **reading),
                "labels": dataset_fingerprint(self.labels),
            },
        )

    def inputs(self, raw: RawImages) -> InputKind:
        """Find what the model's inputs are, and check the number of its outputs.

        Raises:
            ValueError: the model, or the given suspicious model, doesn't fit the classes, is
                sharded or quantised, or has no values; or the suspicious model's are NaN.
            TypeError: one of the two models doesn't return logits.
        """
        model, (view, layout) = unwrapped(self.model), self.evaluated_view()
        check_model(model)  # before it is copied for a suspicious model's checkpoint
        fatal = self._fatal_in(view) if view is not self.dataset else self.unreadable
        shape = input_shape(view, layout, raw, model, fatal)
        own = own_type(model, EvaluatedImages(view, layout), fatal)
        if self.suspicious_model is not None:
            check_numbers(self.suspicious_model)
        for one in (model, self.suspicious_model):
            if one is not None:
                check_model(one)
                check_outputs(one, shape, self.class_names, own)
        return InputKind(shape, own)

    @cached_property
    def suspicious_model(self) -> nn.Module | None:
        """The suspicious model that the user gave, loaded if the user gave a path; else None."""
        if self.suspicious == "copy":
            return None
        if isinstance(self.suspicious, (str, Path)):
            return load_checkpoint(self.model, self.suspicious)
        return None if self.suspicious is None else unwrapped(self.suspicious)

    def scaled_images(self, raw: RawView, inputs: InputKind) -> ModelInputs | None:
        """The images scaled to [-1, 1]; None where the model takes its data's own tensors alone."""
        channels, *size = inputs.shape
        return ModelInputs(raw, (size[0], size[1]), channels) if inputs.own is None else None

    def class_knowledge(
        self,
        raw: RawImages,
        inputs: InputKind,
        clean: Bool[Tensor, "n"],
        options: PassOptions,
    ) -> float | None:
        """Measure how well the model knows the classes, on the main process for all processes.

        None where no setting depends on it.

        Other processes may not have loaded the model's weights. What was measured is kept in the
        cache: a run that is resumed has other weights, and must go on by the same numbers.

        Args:
            raw: the images, from :meth:`raw_view`.
            inputs: what the model takes, from :meth:`inputs`.
            clean: samples whose labels are to be trusted.
            options: cache, device and configuration. All processes get the same answer.
        """
        if not options.config.depends_on_model:
            return None
        model, runtime, seed = unwrapped(self.model), options.runtime, options.config.seed

        def measure() -> float:
            return measured_class_knowledge(
                model, self.evaluated_images(), self.scaled_images(raw, inputs), inputs.shape,
                self.labels, clean, runtime,
                seed=seed, workers=self.workers, progress=options.progress,
            )  # fmt: skip

        found = 0.0
        if runtime.is_main:
            about = merged(options.dataset, describe_model(model, inputs))
            found = kept_knowledge(measure, about, options)
        return float(runtime.share(repr(found)))
