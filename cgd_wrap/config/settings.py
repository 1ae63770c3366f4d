"""Every number of the defence, in one frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cgd_wrap.config import presets, reading
from cgd_wrap.config.calibration import Calibration
from cgd_wrap.config.checks import choice, count, flag, misordered, number, prompt_templates
from cgd_wrap.config.setting import (
    EVERYWHERE,
    FIT,
    LOSS,
    SAMPLES,
    SCAN,
    SPLIT,
    attributes_section,
    faults_in,
    setting,
    settings_of,
)

_POSITIVE = number(0, float("inf"), above=True, below=True)
_OPTIONAL_POSITIVE = number(0, float("inf"), above=True, below=True, optional=True)
_AT_LEAST_0 = number(0, float("inf"), below=True)
_WEIGHT = number(0, float("inf"), below=True, optional=True)
_GROWTH = number(1, float("inf"), below=True, optional=True)
_SHARE, _OPTIONAL_SHARE = number(0, 1), number(0, 1, optional=True)
CODE = "reference code"


@dataclass(frozen=True)
class CGDConfig:
    """Settings of the scan, the split, the loss, the epochs and :meth:`CGDGuard.fit`.

    The defaults are the best that we measured (``docs/results.md``). Three of them are None, as
    the best number depends on whether the model is repaired or trained from scratch: see
    :meth:`decided`. :meth:`paper` holds the numbers of the authors' code (arXiv 2507.05113).
    """

    # fmt: off
    # --- which samples are clean, triggered and mixed ---
    sigma_clean: float = setting(0.2, SPLIT, number(0, 1, below=True), symbol="sigma_1", paper=0.2,
        text="Share of the ranks, at each axis' bad end, that a clean sample keeps away from.")
    sigma_triggered: float = setting(
        0.1, SPLIT, number(0, 1, below=True), symbol="sigma_2", paper=0.1,
        text="""Share of the ranks, at each axis' bad end, that counts as triggered. At most
        sigma_clean.""")
    sigma: Literal["auto", "fixed"] = setting("auto", SPLIT, choice("auto", "fixed"), paper="fixed",
        text="""Whether the thresholds alone decide ("fixed"), or find the classes that an attack
        seems to aim at, in which each sample's probability of poison then decides ("auto").""")
    sigma_slow: float | None = setting(0.3, SPLIT, _OPTIONAL_SHARE, paper=None,
        text="""Mixed samples of this suspicious rank or more count as clean: the suspicious model
        learned them too slowly for a backdoor. At least sigma_clean; None leaves them mixed.""")
    corner_cut: float | None = setting(0.3, SPLIT, _OPTIONAL_SHARE, paper=None,
        text="""In classes that no attack seems to aim at, flagged samples with ``clip_rank (1 -
        suspicious_rank)`` up to this are clean again. None takes none back.""")
    poison_cut: float | None = setting(0.3, SPLIT, _OPTIONAL_SHARE, paper=None,
        text="""In classes that an attack seems to aim at, clean samples that are likelier poisoned
        than this become mixed. None keeps them.""")
    # --- what a clean and a triggered sample weigh in the loss ---
    guidance_weight: float | None = setting(
        None, LOSS, _WEIGHT, symbol="alpha", paper=5e-4, repaired=4.0, from_scratch=1.0,
        text="Weight of the guidance, the KL divergence from CLIP's distribution to the model's.")
    guidance_by_agreement: bool = setting(True, LOSS, flag(), paper=False,
        text="""Whether the guidance weight is multiplied by the share that CLIP has earned
        (``ScanResult.guidance_share``): a CLIP that agrees with few labels finds poison, but it
        teaches little.""")
    unlearning_weight: float | None = setting(
        None, LOSS, _WEIGHT, symbol="beta", paper=0.025, repaired=0.2, from_scratch=0.05,
        text="Weight of the unlearning, the negative cross entropy of triggered samples.")
    temperature: float = setting(1.0, LOSS, _POSITIVE, symbol="T", paper=3.0,
        text="Softens both distributions of the guidance.")
    epsilon: float = setting(
        1e-6, LOSS, number(0, 1, above=True, below=True), paper=1e-6, source=CODE,
        text="Added to the label's probability, so that the unlearning stays bounded.")
    corner_power: float = setting(4.0, LOSS, _AT_LEAST_0, paper=0.0,
        text="""The unlearning weighs a sample by ``(clip_rank (1 - suspicious_rank))`` to this
        power; 0 weighs all samples alike.""")
    doubt_labels: bool = setting(True, LOSS, flag(), paper=False,
        text="""Whether the guidance knows that a triggered sample's label may be wrong. The
        probability of that is the sample's corner weight, or its probability of poison as far as
        CLIP rejects the label, whichever is higher. CLIP's logits are then corrected by it, and the
        guidance weighs the sample by it. In classes whose poison is found by CLIP alone, the
        unlearning and the exposure use it, too.""")
    normalise_by: Literal["expectation", "batch"] = setting(
        "expectation", LOSS, choice("expectation", "batch"), paper="batch",
        text="""What the three sums of the loss are divided by. "expectation" is the number of clean
        samples that a batch holds on average: the weights then say what a triggered sample counts
        against a clean one, and gradient accumulation and any number of processes give exactly the
        gradient of the whole batch. "batch" takes means over each batch's own clean and triggered
        samples; under DDP these are counted over all processes.""")
    # --- which samples an epoch holds ---
    exposure_rate: float = setting(0.7, SAMPLES, _SHARE, paper=0.0,
        text="""Share of the clean draws that show a suspicious image, too: it is blended in, or its
        tone is taken on, while the label stays, so that a trigger says nothing of the label.
        The image mostly comes from the same batch, where the host keeps the order.""")
    exposure_strength: float = setting(0.65, SAMPLES, number(0, 1, below=True),
        text="Largest share of the suspicious image in a blend.")
    tone_exposure: float = setting(0.5, SAMPLES, _SHARE,
        text="""Share of the exposed draws that take on the suspicious image's tone alone (mean and
        spread of each channel) in place of a blend: a trigger may be nothing but a tone.""")
    exposure_epochs: int | None = setting(None, SAMPLES, count(optional=True),
        text="""How many epochs are early. None means half of them where the length of the run is
        known (``fit``, HF Trainer, Lightning, ``protect(..., epochs=)``, ``set_run``), otherwise
        all of them.""")
    early_exposure: float | None = setting(
        None, SAMPLES, _OPTIONAL_SHARE, paper=1.0, repaired=1.0, from_scratch=0.0,
        text="""Part of exposure_rate that the early epochs have. Blends can keep an untrained model
        from ever learning.""")
    late_exposure: float = setting(0.3, SAMPLES, _SHARE,
        text="""Part of exposure_rate that the later epochs have. At a small learning rate these
        epochs win back the clean accuracy that the blends cost; without any blend the model would
        forget what they taught.""")
    poison_oversampling: float = setting(0.05, SAMPLES, _SHARE, paper=0.0,
        text="""Triggered samples that are likelier poisoned than not, and rarer than this share of
        all samples, are drawn up to five times an epoch. Fewer draws taught too little: of
        low-frequency triggers at 1%, on real CIFAR-10, 6.0% attack success were left without and
        2.3% with it.""")
    max_epoch_growth: float | None = setting(2.0, SAMPLES, _GROWTH, paper=None,
        text="""How many times as long an epoch may become by filling up small classes. Beyond that
        the loss weighs their draws up. None fills all classes up, however long it becomes.""")
    keep_mixed: bool = setting(True, SAMPLES, flag(), paper=True,
        text="Whether batches hold mixed samples. These carry no loss, but BatchNorm sees them.")
    # --- what is read and scored ---
    scaled_clip_logits: bool = setting(True, SCAN, flag(), paper=False, source=CODE,
        text="Whether CLIP's cosines are multiplied by its logit scale (and its bias is added).")
    reference_scores: bool = setting(False, SCAN, flag(), paper=True, source=CODE,
        text="Whether samples get the authors' float32 scores, with their ties: to reproduce them.")
    prompts: str | tuple[str, ...] = setting(
        "a photo of a {}", SCAN, prompt_templates(), paper="a photo of a {}",
        text="""What CLIP's text tower reads for a class: a template, several of which are averaged,
        or a set of open_clip's own templates, "openai" (80) or "simple" (7).""")
    clip_precision: Literal["fp32", "bf16", "fp16", "amp"] = setting(
        "fp32", SCAN, choice("fp32", "bf16", "fp16", "amp"),
        text="Precision of CLIP's image tower.")
    clip_resize: Literal["fast", "exact"] = setting(
        "fast", SCAN, choice("fast", "exact"), paper="exact", source=CODE,
        text="""How images are shrunk for CLIP: by torch, in half of the time ("fast"), or by
        CLIP's own preprocessing, to the bit ("exact").""")
    jpeg_edge: int | None = setting(None, SCAN, count(16, optional=True), paper=None, source=CODE,
        text="""Pixels that the shorter edge of JPEG files keeps at least, when they are decoded at
        a reduced scale: sooner, but to other images. None decodes them whole.""")
    suspicious_network: Literal["small", "copy"] = setting(
        "small", SCAN, choice("small", "copy"), paper="copy",
        text="""What is trained as the suspicious model: a small network of our own, on small copies
        of the images, or a fresh copy of your model, on its own inputs.""")
    suspicious_side: int = setting(64, SCAN, count(16),
        text="Largest side of the small copies, a multiple of 32 pixels; 3 bytes a pixel.")
    suspicious_epochs: int = setting(5, SCAN, count(), paper=5, text="Epochs of suspicious models.")
    suspicious_runs: int = setting(1, SCAN, count(), paper=3,
        text="Number of independent suspicious models, whose logits are averaged.")
    suspicious_optimizer: Literal["adam", "sgd"] = setting(
        "adam", SCAN, choice("adam", "sgd"), paper="adam", source=CODE,
        text="Optimiser of the suspicious model; SGD has a momentum of 0.9.")
    suspicious_learning_rate: float = setting(2e-3, SCAN, _POSITIVE, paper=3e-4, source=CODE,
        text="Highest learning rate of the suspicious model.")
    suspicious_schedule: Literal["cosine", "constant"] = setting(
        "cosine", SCAN, choice("cosine", "constant"), paper="constant", source=CODE,
        text="Its schedule. At a constant rate, the learned samples change from epoch to epoch.")
    suspicious_weight_decay: float = setting(5e-4, SCAN, _AT_LEAST_0, paper=5e-4, source=CODE,
        text="Weight decay of the suspicious model.")
    suspicious_batch_size: int = setting(256, SCAN, count(), paper=256, source=CODE,
        text="Samples a step of all processes. Small data sets get smaller batches, 64 an epoch.")
    control: bool = setting(True, SCAN, flag(), paper=False,
        text="""Whether images with triggers of ours, 1% more, ride along in the scan, which tells
        how small an attack it would notice. They need a suspicious model that is trained here.""")
    holdout_fraction: float = setting(0.05, SPLIT, number(0, 1, below=True),
        text="Share of the clean split that isn't trained on, but serves the stopping rule.")
    # --- the training loop of guard.fit, and when it stops ---
    tolerance: float | None = setting(None, FIT, _OPTIONAL_POSITIVE, paper=1.0,
        text="""Training stops when clean accuracy on the held-out part has fallen by more than this
        many percentage points below its best. None measures without stopping, as a schedule that
        starts at a high learning rate needs.""")
    epochs: int = setting(12, FIT, count(), paper=10, text="Epochs of the training.")
    batch_size: int = setting(128, FIT, count(), paper=256, text="Samples a step of all processes.")
    learning_rate: float = setting(0.07, FIT, _POSITIVE, paper=0.01, text="SGD's highest rate.")
    momentum: float = setting(
        0.9, FIT, number(0, 1, below=True), paper=0.0, text="Nesterov momentum of SGD.")
    weight_decay: float = setting(5e-4, FIT, _AT_LEAST_0, paper=5e-4, text="Weight decay of SGD.")
    lr_schedule: Literal["cosine", "constant"] = setting(
        "cosine", FIT, choice("cosine", "constant"), paper="constant",
        text="Schedule: cosine rises over the first tenth of the steps and then falls to 0.")
    max_gradient_norm: float | None = setting(1.0, FIT, _OPTIONAL_POSITIVE, paper=None,
        text="""Longer gradients are cut to this norm. A converged model that unlearns meets sudden
        steep slopes. None cuts nothing.""")
    max_batches_per_epoch: int | None = setting(
        None, FIT, count(optional=True), paper=200, source=CODE,
        text="An epoch ends after this many batches. None goes through all.")
    mixed_precision: Literal["no", "fp16", "bf16"] = setting(
        "no", FIT, choice("no", "fp16", "bf16"),
        text="Precision of the training, where the guard was given no accelerator.")
    on_bad_sample: Literal["raise", "record"] = setting("raise", SCAN, choice("raise", "record"),
        text="""What happens to a sample that can't be read: "raise" stops the scan, "record" leaves
        the sample out of training and lists it in the report.""")
    max_bad_fraction: float = setting(1e-3, SCAN, _SHARE,
        text="""With on_bad_sample="record", the scan stops when more than this share of the samples
        can't be read.""")
    sample_timeout: float = setting(120.0, SCAN, _POSITIVE,
        text="""Seconds after which a sample that hangs is given up, and its worker replaced; so
        the guard must have workers (num_workers).""")
    allow_missing_classes: bool = setting(False, SPLIT, flag(),
        text="Whether a class without any clean sample is a warning instead of an error.")
    strict: bool = setting(False, LOSS, flag(),
        text="""Whether an untagged batch in training, and a sampler that another tool has put in
        place of the guard's, are errors instead of warnings, given once.""")
    scan_batch_size: int | None = setting(None, SCAN, count(optional=True),
        text="""Samples a forward pass of the scan, halved as long as memory runs out. None means
        128 on a CPU, and 512 on a GPU.""")
    scan_timeout: float = setting(1800.0, SCAN, _POSITIVE,
        text="Seconds that a process waits for the others' units while none of these comes in.")
    seed: int = setting(0, EVERYWHERE, count(0), text="Seed of every random choice of the library.")
    calibration: Calibration = dataclasses.field(default=Calibration())
    # fmt: on

    def __post_init__(self) -> None:
        if isinstance(self.prompts, list):  # as YAML and JSON give it
            object.__setattr__(self, "prompts", tuple(self.prompts))
        if isinstance(self.calibration, Mapping):
            object.__setattr__(self, "calibration", Calibration.from_dict(self.calibration))
        faults = faults_in(self, SETTINGS)
        if not isinstance(self.calibration, Calibration):
            faults.append(f"calibration={self.calibration!r} must be a Calibration or a mapping")
        faults = faults or misordered(self.sigma_triggered, self.sigma_clean, self.sigma_slow)
        if faults:
            raise ValueError("CGDConfig: " + "; ".join(faults))

    @classmethod
    def paper(cls, **changes: Any) -> CGDConfig:
        """The reference code's numbers, but that it stops on the test set, and never seeds."""
        return cls(**(PAPER | changes))

    @classmethod
    def from_scratch(cls, **changes: Any) -> CGDConfig:
        """The default for an untrained model, whatever the model is."""
        return cls(**(FROM_SCRATCH | changes))

    @property
    def depends_on_model(self) -> bool:
        """Whether :meth:`decided` has anything to decide."""
        return any(getattr(self, name) is None for name in REPAIRED)

    def decided(self, *, trained: bool) -> CGDConfig:
        """The same settings, with a number for each that depends on the model.

        Args:
            trained: the model knows the classes, and is repaired.
        """
        numbers = REPAIRED if trained else FROM_SCRATCH
        return self.replace(**{n: v for n, v in numbers.items() if getattr(self, n) is None})

    def for_training(self, changes: Mapping[str, Any], *, has_accelerator: bool) -> CGDConfig:
        """A copy with some settings of the training changed; see :func:`presets.for_training`."""
        return self.replace(**presets.for_training(SETTINGS, changes, has_accelerator))

    def replace(self, **changes: Any) -> CGDConfig:
        """A copy with some settings changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON values; the calibration's numbers are a dict of their own."""
        values = dataclasses.asdict(self)
        values["prompts"] = self.prompts if isinstance(self.prompts, str) else list(self.prompts)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CGDConfig:
        """Read our names, or the reference's YAML keys, which then start from its preset.

        Keys of the reference that say where it runs (device, folders, workers) are left to the
        host, and named in the log.

        Raises:
            ValueError: unknown keys, or settings of the reference that we can't honour.
        """
        if reading.is_reference(values):
            return cls.paper(**reading.from_reference(values, SETTINGS))
        return cls(**reading.known_settings(values, SETTINGS))

    @classmethod
    def from_yaml(cls, path: str | Path) -> CGDConfig:
        """Read a YAML file by :meth:`from_dict`; a ValueError says what is wrong with it."""
        return reading.of_file(Path(path), cls.from_dict)

    def to_yaml(self, path: str | Path) -> None:
        """Write all settings under our names."""
        reading.write_yaml(Path(path), self.as_dict())


SETTINGS = settings_of(CGDConfig)
PAPER = presets.paper(SETTINGS)
REPAIRED, FROM_SCRATCH = presets.repaired(SETTINGS), presets.from_scratch(SETTINGS)
CGDConfig.__doc__ = (
    f"{CGDConfig.__doc__}\n{attributes_section(SETTINGS)}\n"
    "        calibration: The thresholds of suspicion and warnings: see :class:`Calibration`.\n"
)
