"""Every number of the defence, in one frozen value."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cgd_wrap.config.checks import Check, choice, count, is_prompts, number
from cgd_wrap.config.reference_files import HOST_KEYS, KEYS, REFERENCE_KEYS, as_number, translated

logger = logging.getLogger(__name__)

# What suits a model that is repaired, and one that is trained from scratch: there is nothing to
# unlearn then, and much of either would keep it from learning at all (examples/results/demo.md).
REPAIRED = {"guidance_weight": 4.0, "unlearning_weight": 0.2, "early_exposure": 1.0}
FROM_SCRATCH = {"guidance_weight": 1.0, "unlearning_weight": 0.05, "early_exposure": 0.0}


@dataclass(frozen=True)
class CGDConfig:
    """Settings of the scan, the split, the loss and :meth:`CGDGuard.fit`.

    The defaults are the best that we measured (``examples/results``); three of them, None, depend
    on whether the model is trained, and so to be repaired, or not: see :meth:`decided`.
    :meth:`paper` holds the reference code's numbers. Where no other source is named, a default is
    ours.

    Attributes:
        sigma_clean: sigma_1, share of the ranks that a clean sample keeps away from, in [0, 1).
            Paper: 0.2.
        sigma_triggered: sigma_2, share of the ranks at each axis' bad end that counts as
            triggered, in [0, sigma_clean]. Paper: 0.1.
        sigma: ``"auto"``: the thresholds find the classes that an attack seems to aim at, and in
            these the data themselves say how much is triggered: see
            :func:`.split.revision.revised`. ``"fixed"``: as much as the thresholds say. Paper:
            fixed.
        sigma_slow: mixed samples whose suspicious rank is at least this count as clean: they were
            learned too slowly for a backdoor. In [sigma_clean, 1], or None. Paper: None.
        corner_cut: ``clip_rank (1 - suspicious_rank)`` up to which flagged samples of classes that
            no attack seems to aim at are clean (see :mod:`.split.suspicion`). In [0, 1], or None.
            Paper: None.
        poison_cut: probability of being poisoned above which clean samples of the classes that an
            attack seems to aim at are mixed. In [0, 1], or None. Paper: None.
        guidance_weight: alpha, weight of the KL towards CLIP, >= 0. None: 4 for a trained model, 1
            for an untrained one. Paper: 5e-4.
        guidance_by_agreement: multiply alpha by :attr:`ScanResult.trust`, so that a CLIP that knows
            the classes badly finds poison but teaches little. Paper: no.
        unlearning_weight: beta, weight of the negative cross entropy, >= 0. None: 0.2 for a trained
            model, 0.05 for an untrained one. Paper: 0.025.
        temperature: T of the guidance, > 0. Paper: 3.
        epsilon: keeps the unlearning bounded, in (0, 1). Reference code: 1e-6.
        corner_power: the unlearning weighs a sample by ``(clip_rank (1 - suspicious_rank))`` to
            this power, >= 0; 0 weighs all alike, as the paper does.
        doubt_labels: how probably a triggered sample's label is wrong, by this weight, or by
            :class:`Suspicion`'s probability of poison, as far as CLIP denies the label,
            where that is higher: tell the teacher, and weigh the guidance by it; in a class that
            only CLIP's denial makes suspected, the unlearning and the exposure, too. Paper: no.
        normalise_by: ``"expectation"`` divides all three sums of the loss by the number of clean
            samples that a batch holds on average: alpha and beta then say what a triggered sample
            weighs against a clean one, and the loss is linear in the samples, so that gradient
            accumulation and any number of processes give exactly the whole batch's gradient.
            ``"batch"`` takes means over each batch's own clean and triggered samples, as the
            paper does; under DDP these are counted over all processes.
        exposure_rate: share of the clean draws that get a suspicious image blended in, or take on
            its tone, chosen by its corner weight, while their label stays: the trigger then says
            nothing of the label. In [0, 1]. Each costs the reading of a second sample. Paper: 0.
        exposure_strength: largest share of the suspicious image in a blend, in [0, 1).
        tone_exposure: share of these draws that take on the suspicious image's tone alone, mean and
            spread of each channel, in place of a blend: a trigger may be nothing else. In [0, 1].
            Paper: none.
        exposure_epochs: the first so many epochs are early, >= 1. None: half of them, where the end
            is known: to :meth:`CGDGuard.fit`, the HF Trainer, Lightning, ``protect(..., epochs=)``
            and ``set_run(epochs)`` of a sampler or view; otherwise all. Paper: none.
        early_exposure: what part of ``exposure_rate`` the early epochs have, in [0, 1]. None: all
            of it for a trained model, none for an untrained one, which blends can keep from ever
            learning. Paper: none.
        late_exposure: what part of ``exposure_rate`` the later epochs have, in [0, 1]. In a repair,
            at a small learning rate, they get back the clean accuracy that the blends cost; without
            any, the network would forget what they taught. Paper: none.
        poison_oversampling: triggered samples that are likelier poisoned than not and rarer than
            this share of all samples are drawn up to five times an epoch, to come to it. In [0, 1].
            Few of them teach too little: of low-frequency triggers at 1%, on real CIFAR-10, 6.0%
            ASR were left where each was drawn once, 2.3% so. Paper: 0.
        keep_mixed: whether mixed samples are in the batches. They carry no loss; BatchNorm sees
            them. Paper: yes.
        scaled_clip_logits: multiply CLIP's cosines by its logit scale (and add its bias). The
            reference code uses bare cosines.
        reference_scores: the authors' float32 scores, with their ties. For reproduction only.
        prompts: zero-shot prompt: one template with ``{}``, several, or ``"openai"`` (80
            templates) or ``"simple"`` (7). Paper: "a photo of a {}".
        clip_precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"amp"``.
        suspicious_epochs: epochs of the suspicious model, >= 1. Paper: 5.
        suspicious_runs: independent suspicious models, logits averaged, >= 1. Paper: 3.
        suspicious_optimizer: ``"adam"`` (reference code) or ``"sgd"`` (momentum 0.9).
        suspicious_learning_rate: > 0. Reference code: 3e-4.
        suspicious_schedule: ``"cosine"`` or ``"constant"`` as ``lr_schedule``. At a constant rate
            what was learned so far changes from one epoch to the next. Reference code: constant.
        suspicious_weight_decay: >= 0. Reference code: 5e-4.
        suspicious_batch_size: samples a step, over all processes; small data sets get smaller
            batches, so that an epoch has 16 steps. Reference code: 256.
        holdout_fraction: share of the clean split that is kept out of training, for the stopping
            rule, in [0, 1).
        tolerance: :meth:`CGDGuard.stopping` stops when clean accuracy has fallen by more than
            this many percentage points below its best, > 0; None measures without stopping, for
            schedules that start from a high learning rate. Paper: 1.
        epochs: of :meth:`CGDGuard.fit`, >= 1. Paper: 10.
        batch_size: of :meth:`CGDGuard.fit`, samples a step, over all processes. Paper: 256.
        learning_rate: of :meth:`CGDGuard.fit`, SGD, > 0. Paper: 0.01.
        momentum: of :meth:`CGDGuard.fit`, Nesterov's, in [0, 1). Paper: 0.
        weight_decay: of :meth:`CGDGuard.fit`, >= 0. Paper: 5e-4.
        lr_schedule: ``"cosine"`` (up over the first tenth of the steps, then down to 0) or
            ``"constant"``. Paper: constant.
        max_gradient_norm: of :meth:`CGDGuard.fit`: longer gradients are cut to this, > 0, or None.
            A converged model that unlearns meets sudden steep slopes. Paper: None.
        max_batches_per_epoch: cuts an epoch off, or None. Reference code: 200.
        mixed_precision: of :meth:`CGDGuard.fit` without an accelerator of yours: ``"no"``,
            ``"fp16"`` or ``"bf16"``.
        on_bad_sample: ``"raise"`` stops at a sample that cannot be read; ``"record"`` leaves it
            out of training and lists it in the report.
        max_bad_fraction: with ``"record"``, give up above this share of bad samples, in [0, 1].
        allow_missing_classes: go on when a class has no clean sample. Default: an error.
        strict: raise, instead of warning once, when an untagged batch reaches the loss in training.
        scan_batch_size: samples a forward pass, or None: 128 on a CPU; on a GPU 512, halved as
            long as memory runs out.
        scan_timeout: seconds that a process waits for the others' units without any progress.
        seed: of every random choice made here.
    """

    sigma_clean: float = 0.2
    sigma_triggered: float = 0.1
    sigma: Literal["auto", "fixed"] = "auto"
    sigma_slow: float | None = 0.3
    corner_cut: float | None = 0.3
    poison_cut: float | None = 0.3
    guidance_weight: float | None = None
    guidance_by_agreement: bool = True
    unlearning_weight: float | None = None
    temperature: float = 1.0
    epsilon: float = 1e-6
    corner_power: float = 4.0
    doubt_labels: bool = True
    normalise_by: Literal["expectation", "batch"] = "expectation"
    exposure_rate: float = 0.7
    exposure_strength: float = 0.65
    tone_exposure: float = 0.5
    exposure_epochs: int | None = None
    early_exposure: float | None = None
    late_exposure: float = 0.3
    poison_oversampling: float = 0.05
    keep_mixed: bool = True
    scaled_clip_logits: bool = True
    reference_scores: bool = False
    prompts: str | tuple[str, ...] = "a photo of a {}"
    clip_precision: Literal["fp32", "bf16", "fp16", "amp"] = "fp32"
    suspicious_epochs: int = 5
    suspicious_runs: int = 1
    suspicious_optimizer: Literal["adam", "sgd"] = "adam"
    suspicious_learning_rate: float = 2e-3
    suspicious_schedule: Literal["cosine", "constant"] = "cosine"
    suspicious_weight_decay: float = 5e-4
    suspicious_batch_size: int = 256
    holdout_fraction: float = 0.05
    tolerance: float | None = None
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.07
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    max_gradient_norm: float | None = 1.0
    max_batches_per_epoch: int | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    on_bad_sample: Literal["raise", "record"] = "raise"
    max_bad_fraction: float = 1e-3
    allow_missing_classes: bool = False
    strict: bool = False
    scan_batch_size: int | None = None
    scan_timeout: float = 1800.0
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, list):  # as YAML and JSON give it
            object.__setattr__(self, "prompts", tuple(self.prompts))
        faults = [
            f"{name}={getattr(self, name)!r} must be {expected}"
            for name, (accepts, expected) in _CHECKS.items()
            if not accepts(getattr(self, name))
        ]
        if not faults and self.sigma_triggered > self.sigma_clean:
            faults.append("sigma_triggered must not exceed sigma_clean, or the splits overlap")
        if not faults and self.sigma_slow is not None and self.sigma_slow < self.sigma_clean:
            faults.append("sigma_slow must not be below sigma_clean: raise it, too, or pass None")
        if faults:
            raise ValueError("CGDConfig: " + "; ".join(faults))

    @classmethod
    def paper(cls, **changes: Any) -> CGDConfig:
        """The reference code's numbers, quirks included (bare cosines, tied scores).

        Two of its habits are left out on purpose: it stops on the test set, and it never seeds.
        """
        numbers: dict[str, Any] = {
            "sigma": "fixed",
            "sigma_slow": None,
            "corner_cut": None,
            "poison_cut": None,
            "guidance_weight": 5e-4,
            "guidance_by_agreement": False,
            "unlearning_weight": 0.025,
            "temperature": 3.0,
            "corner_power": 0.0,
            "doubt_labels": False,
            "normalise_by": "batch",
            "exposure_rate": 0.0,
            "early_exposure": 1.0,
            "poison_oversampling": 0.0,
            "scaled_clip_logits": False,
            "reference_scores": True,
            "suspicious_epochs": 5,
            "suspicious_runs": 3,
            "suspicious_learning_rate": 3e-4,
            "suspicious_schedule": "constant",
            "tolerance": 1.0,
            "epochs": 10,
            "batch_size": 256,
            "learning_rate": 0.01,
            "momentum": 0.0,
            "lr_schedule": "constant",
            "max_gradient_norm": None,
            "max_batches_per_epoch": 200,
        }
        return cls(**(numbers | changes))

    @classmethod
    def from_scratch(cls, **changes: Any) -> CGDConfig:
        """What the default is for an untrained model, whatever the model."""
        return cls(**(FROM_SCRATCH | changes))

    @property
    def depends_on_model(self) -> bool:
        """Whether :meth:`decided` has anything to decide."""
        return any(getattr(self, name) is None for name in REPAIRED)

    def decided(self, *, trained: bool) -> CGDConfig:
        """The same, with a number for each that depends on the model.

        Args:
            trained: the model knows the classes, and is repaired.
        """
        numbers = REPAIRED if trained else FROM_SCRATCH
        return self.replace(**{n: v for n, v in numbers.items() if getattr(self, n) is None})

    def replace(self, **changes: Any) -> CGDConfig:
        """A copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = dataclasses.asdict(self)
        values["prompts"] = self.prompts if isinstance(self.prompts, str) else list(self.prompts)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CGDConfig:
        """Read our field names, or the reference's YAML keys, which then start from its preset.

        Keys of the reference that say where it runs (device, folders, workers) are left to the
        host, and named in the log.

        Raises:
            ValueError: for unknown keys, and for settings that the reference reads but ignores
                and that we can't honour.
        """
        if not KEYS & set(values):
            return cls(**known_settings(values))
        left_out = sorted(HOST_KEYS & set(values))
        if left_out:
            logger.info("Left to the host program: %s.", ", ".join(left_out))
        return cls.paper(**known_settings(translated(values)))

    @classmethod
    def from_yaml(cls, path: str | Path) -> CGDConfig:
        """Read a YAML file by :meth:`from_dict`."""
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
        return cls.from_dict({name: as_number(value) for name, value in values.items()})

    def to_yaml(self, path: str | Path) -> None:
        """Write all fields under our names."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def known_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as arguments of :class:`CGDConfig`.

    Raises:
        ValueError: it has no such fields; they are named.
    """
    names = {field.name for field in dataclasses.fields(CGDConfig)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; the settings are {sorted(names)}, or the reference's "
            f"{sorted(REFERENCE_KEYS)}"
        )
    prompts = values.get("prompts")
    return {**values, "prompts": tuple(prompts)} if isinstance(prompts, list) else dict(values)


_FLAG = (lambda value: isinstance(value, bool)), "True or False"
_POSITIVE = number(0, float("inf"), above=True, below=True)
_AT_LEAST_0 = number(0, float("inf"), below=True)
_WEIGHT = number(0, float("inf"), below=True, optional=True)
_CHECKS: dict[str, Check] = {
    "sigma_clean": number(0, 1, below=True),
    "sigma_triggered": number(0, 1, below=True),
    "sigma": choice("auto", "fixed"),
    "sigma_slow": number(0, 1, optional=True),
    "corner_cut": number(0, 1, optional=True),
    "poison_cut": number(0, 1, optional=True),
    "guidance_weight": _WEIGHT,
    "unlearning_weight": _WEIGHT,
    "temperature": _POSITIVE,
    "epsilon": number(0, 1, above=True, below=True),
    "corner_power": _AT_LEAST_0,
    "doubt_labels": _FLAG,
    "guidance_by_agreement": _FLAG,
    "normalise_by": choice("expectation", "batch"),
    "exposure_rate": number(0, 1),
    "exposure_strength": number(0, 1, below=True),
    "tone_exposure": number(0, 1),
    "exposure_epochs": count(optional=True),
    "early_exposure": number(0, 1, optional=True),
    "late_exposure": number(0, 1),
    "poison_oversampling": number(0, 1),
    "keep_mixed": _FLAG,
    "scaled_clip_logits": _FLAG,
    "reference_scores": _FLAG,
    "prompts": (
        is_prompts,
        "a template with '{}' for the class name, several of them, 'openai' or 'simple'",
    ),
    "clip_precision": choice("fp32", "bf16", "fp16", "amp"),
    "suspicious_epochs": count(),
    "suspicious_runs": count(),
    "suspicious_optimizer": choice("adam", "sgd"),
    "suspicious_learning_rate": _POSITIVE,
    "suspicious_schedule": choice("cosine", "constant"),
    "suspicious_weight_decay": _AT_LEAST_0,
    "suspicious_batch_size": count(),
    "holdout_fraction": number(0, 1, below=True),
    "tolerance": number(0, float("inf"), above=True, below=True, optional=True),
    "epochs": count(),
    "batch_size": count(),
    "learning_rate": _POSITIVE,
    "momentum": number(0, 1, below=True),
    "weight_decay": _AT_LEAST_0,
    "lr_schedule": choice("cosine", "constant"),
    "max_gradient_norm": number(0, float("inf"), above=True, below=True, optional=True),
    "max_batches_per_epoch": count(optional=True),
    "mixed_precision": choice("no", "fp16", "bf16"),
    "on_bad_sample": choice("raise", "record"),
    "max_bad_fraction": number(0, 1),
    "allow_missing_classes": _FLAG,
    "strict": _FLAG,
    "scan_batch_size": count(optional=True),
    "scan_timeout": _POSITIVE,
    "seed": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "a whole number of 0 or more",
    ),
}
