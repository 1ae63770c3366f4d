"""Finding out what a dataset is: where samples hold image and label, class names, all labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.data.class_names import resolve_class_names
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout, check_map_style, find_layout
from cgd_wrap.data.samples import fatal_probes
from cgd_wrap.data.workers import BadSamples, Workers
from cgd_wrap.processes import is_main_process
from cgd_wrap.randomness import plain_torch


class Labelling(NamedTuple):
    """What is known of a dataset before any image is looked at.

    Attributes:
        layout: where a sample holds image and label.
        names: names of the classes, in the order of the labels.
        labels: label of each sample, int64 [N]; 0 for the samples in ``unreadable``.
        unreadable: samples that are known to be bad. Nothing reads them again.
    """

    layout: SampleLayout
    names: list[str]
    labels: Int[Tensor, "n"]
    unreadable: BadSamples


@plain_torch()
def read_labelling(
    dataset: Any,
    class_names: Sequence[str] | None = None,
    image_key: int | str | None = None,
    label_key: int | str | None = None,
    config: CGDConfig | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> Labelling:
    """Read where a dataset's samples hold what, the names of its classes, and all labels.

    Args:
        dataset: the user's dataset.
        class_names: names that the user gave, or None.
        image_key: position or key of the image in a sample. Default: found.
        label_key: position or key of the label in a sample. Default: found.
        config: says whether a sample that can't be read is an error or noted, and how long it may
            take.
        num_workers: number of processes that read samples.
        progress: show a bar, on the main process, if all samples have to be read.

    Raises:
        TypeError: the dataset isn't map-style, of images and labels.
        DatasetError: labels or class names are unusable, or don't fit each other.
    """
    check_map_style(dataset)
    config = config or CGDConfig()
    workers = Workers(num_workers, config.sample_timeout)
    fatal = fatal_probes(dataset, workers)
    layout = find_layout(dataset, image_key=image_key, label_key=label_key, fatal=fatal)
    names = resolve_class_names(dataset, layout, class_names)
    bad = dict(fatal)
    labels = read_labels(
        dataset, layout, len(names),
        workers=workers, progress=progress and is_main_process(), fatal=fatal,
        bad=bad if config.on_bad_sample == "record" else None,
    )  # fmt: skip
    return Labelling(layout, names, labels, bad)
