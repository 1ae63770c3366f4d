"""The result of a scan as one frozen value: scores, split, suspicion and CLIP's logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.config.calibration import Calibration
from cgd_wrap.errors import DatasetError
from cgd_wrap.functional import Split
from cgd_wrap.models.class_knowledge import class_knowledge
from cgd_wrap.scan.passes import Passes
from cgd_wrap.scan.stored_logits import StoredLogits, members_of
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.clip_groups import fast_groups
from cgd_wrap.split.clip_warnings import clip_warnings
from cgd_wrap.split.control_scores import ControlScores, Scored
from cgd_wrap.split.doubts import Doubt, preconditions, wrong_labels
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate, estimate_poison
from cgd_wrap.split.label_scores import (
    LabelScores,
    all_bad,
    choosing_clip,
    contradicting_most,
)
from cgd_wrap.split.power import Power
from cgd_wrap.split.revision import hold_out, revised
from cgd_wrap.split.suspicion import Suspicion
from cgd_wrap.split.verdict import Verdict
from cgd_wrap.split.wrong_labels import WrongLabels


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Everything that a scan finds out about a training set.

    Attributes:
        labels: the given labels, int64 [N].
        class_names: names of the classes, in the order of the labels.
        entropy_map: scores and ranks of each sample.
        split: clean, triggered and mixed samples.
        held_out: clean samples that are kept out of training, bool [N].
        teacher: CLIP's logits of the triggered samples, which guidance uses, float32 [T, C], in the
            dataset's order. Of several CLIPs, the CLIP that contradicts a sample's label most gives
            the sample's logits.
        teachers: how far the CLIPs agree with the labels, and with each other.
        poison_estimate: estimate of how many samples are poisoned, and under which labels.
        poison_probability: probability that each sample is poisoned, float32 [N] in [0, 1]; 0 in
            classes that aren't suspected.
        bad: samples that can't be used: index -> [reason, message, path].
        doubts: what the CLIPs' scores say against trusting them.
        class_knowledge: how well the model that is to be trained knew the classes when the scan
            ended: 0 for a guess, 1 if all clean samples are classified right. None: no setting
            depends on the knowledge, which wasn't measured.
        suspicious_knowledge: the same of the suspicious model and all given labels. None: not
            known, as the scan was saved by an older version.
        power: how small an attack the scan would have noticed. None: there was no control.
        config: the configuration that the scan was made with.
    """

    labels: Int[Tensor, "n"]
    class_names: tuple[str, ...]
    entropy_map: EntropyMap
    split: Split
    held_out: Bool[Tensor, "n"]
    teacher: Float[Tensor, "t classes"]
    teachers: ClipAgreement
    poison_estimate: PoisonEstimate
    poison_probability: Float[Tensor, "n"]
    bad: Mapping[int, list[str | None]] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    class_knowledge: float | None = None
    suspicious_knowledge: float | None = None
    power: Power | None = None
    config: CGDConfig = field(default_factory=CGDConfig)

    @property
    def warnings(self) -> list[str]:
        """Messages that CLIPs can't be trusted."""
        return [doubt.text for doubt in self.doubts]

    @cached_property
    def verdict(self) -> Verdict:
        """What the scan says, with all that speaks against trusting it."""
        readable = torch.ones(len(self.labels), dtype=torch.bool)
        readable[list(self.bad)] = False
        calibration = self.config.calibration
        missing = preconditions(
            self.labels, readable, self.split.clean, self.class_names, self.suspicious_knowledge,
            # Beside an attack that was found, a test of what else could hide says little.
            None if self.poison_estimate.classes else self.power, calibration,
        )  # fmt: skip
        return Verdict.of(
            self.poison_estimate, self.labels, readable, self.poison_probability,
            self.class_names, (*self.doubts, *missing), self.power, calibration,
        )  # fmt: skip

    @property
    def trained(self) -> bool:
        """Whether the model knew the classes and is to be repaired; True if not measured."""
        known = self.class_knowledge
        return known is None or known >= self.config.calibration.least_knowledge

    @property
    def agreement(self) -> float:
        """Share of samples whose label is CLIP's first choice; with several CLIPs, the lowest."""
        return min(self.teachers.agreement)

    @property
    def guidance_share(self) -> float:
        """How far CLIP should teach, in [0, 1], by its agreement with labels that aren't poisoned.

        The agreement is taken above chance (Cohen's kappa for even classes). The share is 0 up to
        ``calibration.no_guidance``, 1 from ``calibration.full_guidance`` on, and linear in between.
        """
        honest = min(1.0, self.agreement / max(1 - self.poison_estimate.rate, 1e-9))
        chance = 1 / self.teacher.shape[1]
        kappa = (honest - chance) / max(1 - chance, 1e-9)
        thresholds = self.config.calibration
        none, full = thresholds.no_guidance, thresholds.full_guidance
        return min(max((kappa - none) / (full - none), 0.0), 1.0)

    @classmethod
    def of(
        cls,
        passes: Passes,
        labels: Int[Tensor, "n"],
        config: CGDConfig,
        class_names: Sequence[str],
        clip_names: Sequence[str] = ("CLIP",),
    ) -> ScanResult:
        """Score the labels by the logits of both passes, and split the dataset.

        Args:
            passes: logits of both models. Of several CLIPs, a label's score is that of the CLIP
                that contradicts the label most.
            labels: given labels.
            config: thresholds, score rule, share to hold out.
            class_names: names of the classes, in the order of the labels, for the warnings.
            clip_names: name of each CLIP, for the warnings.
        """
        clip, reference = passes.clip, config.reference_scores
        scores = [
            LabelScores.of(one, labels, reference_scores=reference, compare=True)
            for one in members_of(clip)
        ]
        suspect = LabelScores.of(passes.suspicious, labels, reference_scores=reference)
        bad = all_bad([suspect, *scores])
        valid = torch.ones(len(labels), dtype=torch.bool)
        valid[list(bad)] = False
        if len(bad) > config.max_bad_fraction * len(labels):
            raise DatasetError(
                f"{len(bad)} of {len(labels)} samples can't be used, more than "
                f"max_bad_fraction={config.max_bad_fraction} allows: {sorted(bad)[:10]} ..."
            )
        against = contradicting_most(scores)
        entropy_map = EntropyMap.from_scores(
            against, suspect.score, valid=valid, reference_scores=reference
        )
        split = entropy_map.split(
            sigma_clean=config.sigma_clean,
            sigma_triggered=config.sigma_triggered,
            sigma_slow=config.sigma_slow,
        )
        ranks = entropy_map.clip_rank, entropy_map.suspicious_rank
        wrong = WrongLabels.of(scores, labels, valid, config.calibration)
        suspicion = Suspicion.of(labels, *ranks, split.triggered, wrong, config.calibration)
        poison, power = suspicion.probability, None
        if passes.control is not None:
            power = Power.of(
                ControlScores.of(passes.control, reference_scores=reference),
                Scored(labels, against, suspect.score, valid, wrong.looks_wrong), wrong,
                suspicion.figures,
                config.sigma_triggered, config.seed, config.calibration,
            )  # fmt: skip
        split = revised(
            split, labels, *ranks, suspicion,
            corner_cut=config.corner_cut, poison_cut=config.poison_cut,
            auto=config.sigma == "auto",
        )  # fmt: skip
        figures = ClipAgreement.of(clip_names, scores, labels, valid)
        doubts = _doubts(
            clip, scores, valid, labels, suspicion, ranks[1], figures, class_names,
            config.calibration,
        )  # fmt: skip
        return cls(
            labels=labels,
            class_names=tuple(class_names),
            entropy_map=entropy_map,
            split=split,
            held_out=hold_out(labels, split.clean, config.holdout_fraction, config.seed),
            teacher=_teacher_of(clip, scores, split.triggered.nonzero().squeeze(1)),
            teachers=figures,
            poison_estimate=estimate_poison(labels, suspicion, valid),
            poison_probability=poison.float(),
            bad=bad,
            doubts=tuple(doubts),
            suspicious_knowledge=class_knowledge(suspect.choice[valid], labels[valid]),
            power=power,
            config=config,
        )


def _doubts(
    clip: StoredLogits,
    scores: Sequence[LabelScores],
    valid: Bool[Tensor, "n"],
    labels: Int[Tensor, "n"],
    suspicion: Suspicion,
    suspicious_rank: Float[Tensor, "n"],
    figures: ClipAgreement,
    class_names: Sequence[str],
    calibration: Calibration,
) -> Iterator[Doubt]:
    """Find what the scores of the CLIPs say against trusting them, or the labels."""
    yield from clip_warnings(
        figures, scores, labels, valid, suspicion.probability, class_names, calibration
    )
    honest = valid & ~suspicion.suspected[labels]
    for name, one, found in zip(figures.names, members_of(clip), scores, strict=True):
        agreed = honest & (found.choice == labels)
        yield from fast_groups(name, one, labels, agreed, suspicious_rank, class_names, calibration)
    doubtful = suspicion.looks_wrong.nonzero().squeeze(1).tolist()
    if doubtful:
        yield wrong_labels(doubtful, suspicion.figures.wrong_share.tolist(), class_names)


def _teacher_of(
    clip: StoredLogits, scores: Sequence[LabelScores], wanted: Int[Tensor, "k"]
) -> Float[Tensor, "k classes"]:
    """Collect CLIP's logits of some samples; with several CLIPs, choose a CLIP for each sample.

    The CLIP that contradicts the sample's label most is chosen. In a mean over the CLIPs, a CLIP
    with the attacker's backdoor would teach the target.
    """
    members = members_of(clip)
    if len(members) == 1:
        return clip.rows(wanted)
    each = torch.stack([one.rows(wanted).float().log_softmax(dim=1) for one in members])
    chosen = choosing_clip(scores)[wanted]
    return each[chosen, torch.arange(len(wanted))]
