"""Both passes of a scan, and the control that rides along in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import ConcatDataset

from cgd_wrap.clip import load_zero_shot
from cgd_wrap.data import RawImages
from cgd_wrap.data.identity import decoder_versions, merged
from cgd_wrap.data.workers import HERE
from cgd_wrap.models.architecture import describe_model
from cgd_wrap.models.inputs import InputKind
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.suspicious_network import SuspiciousNetwork
from cgd_wrap.scan.clip_pass import clip_pass, store_names
from cgd_wrap.scan.control import FOLDER, Control, ControlImages, ControlPlan
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.small_copies import SmallCopies
from cgd_wrap.scan.stored_logits import StoredLogits, bad_samples
from cgd_wrap.scan.subject import Subject
from cgd_wrap.scan.suspicious_pass import (
    given_suspicious_pass,
    own_inputs_pass,
    trained_suspicious_pass,
)


@dataclass(frozen=True, eq=False)
class Passes:
    """What both models say of a data set.

    Attributes:
        clip: CLIP's logits of every sample.
        suspicious: the suspicious model's.
        control: the same of the control's images. None: there is no control.
    """

    clip: StoredLogits
    suspicious: StoredLogits
    control: Control | None = None


def run_passes(subject: Subject, raw: RawImages, inputs: InputKind, options: PassOptions) -> Passes:
    """Score every sample by CLIP and by the suspicious model, and a control with them.

    Args:
        subject: the data set and the models.
        raw: the images, from :meth:`Subject.raw_view`.
        inputs: what the model takes, from :meth:`Subject.inputs`.
        options: cache, device and configuration.
    """
    config, labels, given = options.config, subject.labels, subject.suspicious_model
    stores = [*store_names(subject.clip), "small"]
    options.check_stores([*stores, "suspicious", *(f"{FOLDER}/{name}" for name in stores)])
    edge = config.jpeg_edge
    made_by = decoder_versions() | ({} if edge is None else {"jpeg_edge": str(edge)})
    options = replace(options, dataset=merged(options.dataset, made_by))
    raw = raw.drafted(edge)
    # In other numbers of channels a trigger may lie where no RGB image shows it.
    small = config.suspicious_network == "small" and inputs.shape[0] in (1, 3)
    own = subject.suspicious is None and small
    # A model that is given has not learned our triggers, and the data's own tensors have none.
    shown = config.control and given is None and (own or inputs.own is None)
    plan = ControlPlan.of(labels if shown else labels[:0], options.unreadable, config.seed)
    left = not options.seems_finished("suspicious", len(labels) + len(plan))

    copies = [SmallCopies(raw, options)] if own else []
    score = partial(clip_pass, subject.clip, subject.class_names, load=cache(load_zero_shot))
    clip = score(raw, options, small=copies[0] if own and left else None)
    options = options.without(bad_samples(clip))
    if given is not None:
        view, architecture = subject.evaluated_images(), describe_model(given, inputs)
        return Passes(clip, given_suspicious_pass(given, architecture, view, len(raw), options))
    if not len(plan):
        return Passes(clip, _trained(subject, inputs, [raw], copies, labels, {}, [options]))
    control, shows = ControlImages(raw, plan), plan.options(options)
    copies += [SmallCopies(control, shows, copies[0].side)] if own else []
    control_clip = score(control, shows, small=copies[1] if own and left else None)
    shows = shows.without(bad_samples(control_clip))
    both = _trained(
        subject, inputs, [raw, control], copies, torch.cat([labels, plan.labels]),
        plan.described(), [options, shows],
    )  # fmt: skip
    rows = range(len(labels)), range(len(labels), len(labels) + len(plan))
    first, rest = (replace(both, within=some) for some in rows)
    return Passes(clip, first, Control(plan, labels[plan.source], control_clip, rest))


def _trained(
    subject: Subject,
    inputs: InputKind,
    raw: Sequence[Any],
    copies: Sequence[SmallCopies],
    labels: Int[Tensor, "rows"],
    described: dict[str, Any],
    each: Sequence[PassOptions],
) -> StoredLogits:
    """Train the suspicious model on the user's images, and on the control's if there are any.

    Args:
        subject: the data set and the user's model.
        inputs: what the user's model takes.
        raw: raw images, part by part.
        copies: their small copies, for a network of our own; none for copies of the user's model.
        labels: labels of all parts.
        described: JSON values that describe the further part, for the fingerprint.
        each: options of each part, with the samples that are bad in it.
    """
    options, model, kind = each[0], unwrapped(subject.model), inputs
    views: list[Any]
    if copies:
        views, side = list(copies), copies[0].side
        model = SuspiciousNetwork(options.num_classes, side)
        kind = InputKind((3, side, side), torch.uint8)
    else:
        views = [subject.scaled_images(part, inputs) for part in raw]
    described["input"] = list(kind.shape)
    if views[0] is None:
        views = [subject.evaluated_images()]
        described["inputs"], bad = own_inputs_pass(views[0], len(labels), options)
        options = options.without(bad)
    for part in each[1:]:
        first = len(raw[0])
        options = options.without({first + row: why for row, why in part.unreadable.items()})
    usable = torch.ones(len(labels), dtype=torch.bool)
    usable[list(options.unreadable)] = False

    def prepare() -> None:
        for one, part in zip(copies, each, strict=True):
            one.fill(part)

    return trained_suspicious_pass(
        model, describe_model(model, kind), views[0] if len(views) == 1 else ConcatDataset(views),
        described, labels, usable.nonzero().squeeze(1),
        replace(options, workers=HERE) if copies else options,
        prepare=prepare if copies else None,
    )  # fmt: skip
