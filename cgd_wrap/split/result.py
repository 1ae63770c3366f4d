"""What a scan hands on: scores, split and teacher, as one frozen value that can be stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.errors import CacheMismatchError, DatasetError
from cgd_wrap.files import FORMAT, check_fingerprint, write_atomically, write_json
from cgd_wrap.functional import Split
from cgd_wrap.scan.stored_logits import StoredLogits, members_of
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.clip_groups import fast_groups
from cgd_wrap.split.clip_warnings import clip_warnings
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate, estimate_poison
from cgd_wrap.split.label_scores import LabelScores, all_bad, contradicting_most
from cgd_wrap.split.revision import hold_out, revised
from cgd_wrap.split.suspicion import Suspicion

logger = logging.getLogger(__name__)

STORED = ("held_out", "teacher", "poison_probability")  # tensors of a saved result


@dataclass(frozen=True, eq=False)
class ScanResult:
    """The outcome of a scan.

    Attributes:
        entropy_map: scores and ranks of each sample.
        split: clean, triggered and mixed samples.
        held_out: clean samples that are kept out of training, bool [N].
        teacher: CLIP's logits of the triggered samples, float32 [T, C], in the dataset's order; of
            several CLIPs those of the one that contradicts the label most, which teaches.
        teachers: how far the CLIPs agree with the labels, and with each other.
        poison_estimate: how much seems to be poisoned, and under which labels.
        poison_probability: of each sample, in suspected classes, float32 [N] in [0, 1].
        bad: samples that can't be used: index -> [reason, message, path].
        warnings: of CLIPs that can't be trusted.
        class_knowledge: how well the model that is to be trained knew the classes when the scan
            ended: 0 for a guess, 1 where all clean samples are classified right. None: no setting
            depended on it, and it wasn't measured.
        calibration: the thresholds that were used.
    """

    entropy_map: EntropyMap
    split: Split
    held_out: Bool[Tensor, "n"]
    teacher: Float[Tensor, "t classes"]
    teachers: ClipAgreement
    poison_estimate: PoisonEstimate
    poison_probability: Float[Tensor, "n"]
    bad: Mapping[int, list[str | None]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    class_knowledge: float | None = None
    calibration: Calibration = DEFAULT

    @property
    def trained(self) -> bool:
        """Whether the model knew the classes already, and is to be repaired; True if not known."""
        known = self.class_knowledge
        return known is None or known >= self.calibration.least_knowledge

    @property
    def agreement(self) -> float:
        """Share of the samples whose label is CLIP's first choice; of several CLIPs the lowest."""
        return min(self.teachers.agreement)

    @property
    def guidance_share(self) -> float:
        """How far CLIP should teach, in [0, 1], by its agreement with labels that aren't poisoned.

        The agreement is taken above chance (Cohen's kappa for even classes). The share is 0 up to
        ``calibration.no_guidance``, 1 from ``calibration.full_guidance`` on, and even in between.
        """
        honest = min(1.0, self.agreement / max(1 - self.poison_estimate.rate, 1e-9))
        chance = 1 / self.teacher.shape[1]
        kappa = (honest - chance) / max(1 - chance, 1e-9)
        none, full = self.calibration.no_guidance, self.calibration.full_guidance
        return min(max((kappa - none) / (full - none), 0.0), 1.0)

    @classmethod
    def of(
        cls,
        clip: StoredLogits,
        suspicious: StoredLogits,
        labels: Int[Tensor, "n"],
        config: CGDConfig,
        class_names: Sequence[str],
        clip_names: Sequence[str] = ("CLIP",),
    ) -> ScanResult:
        """Score both passes and split the dataset.

        Args:
            clip: CLIP's logits, or those of several CLIPs: a label's score is then that of the
                one that contradicts it most.
            suspicious: the suspicious model's.
            labels: given labels.
            config: thresholds, score rule, share to hold out.
            class_names: C names, for the warnings.
            clip_names: one per CLIP, for the warnings.
        """
        reference = config.reference_scores
        scores = [
            LabelScores.of(one, labels, reference_scores=reference) for one in members_of(clip)
        ]
        suspect = LabelScores.of(suspicious, labels, reference_scores=reference)
        bad = all_bad([suspect, *scores])
        valid = torch.ones(len(labels), dtype=torch.bool)
        valid[list(bad)] = False
        if len(bad) > config.max_bad_fraction * len(labels):
            raise DatasetError(
                f"{len(bad)} of {len(labels)} samples can't be used, more than "
                f"max_bad_fraction={config.max_bad_fraction} allows: {sorted(bad)[:10]} ..."
            )
        entropy_map = EntropyMap.from_scores(
            contradicting_most(scores), suspect.score, valid=valid, reference_scores=reference
        )
        split = entropy_map.split(
            sigma_clean=config.sigma_clean,
            sigma_triggered=config.sigma_triggered,
            sigma_slow=config.sigma_slow,
        )
        ranks = entropy_map.clip_rank, entropy_map.suspicious_rank
        suspicion = Suspicion.of(labels, *ranks, split.triggered, config.calibration)
        poison = suspicion.probability
        split = revised(
            split, labels, *ranks, suspicion,
            corner_cut=config.corner_cut, poison_cut=config.poison_cut,
            auto=config.sigma == "auto",
        )  # fmt: skip
        figures = ClipAgreement.of(clip_names, scores, labels, valid)
        warnings = clip_warnings(
            figures, scores, labels, valid, poison, class_names, config.calibration
        )
        honest = valid & ~suspicion.suspected[labels]
        for name, one, one_scores in zip(clip_names, members_of(clip), scores, strict=True):
            agreed = honest & (one_scores.choice == labels)
            warnings += fast_groups(
                name, one, labels, agreed, ranks[1], class_names, config.calibration
            )
        return cls(
            entropy_map=entropy_map,
            split=split,
            held_out=hold_out(labels, split.clean, config.holdout_fraction, config.seed),
            teacher=_teacher_of(clip, scores, split.triggered.nonzero().squeeze(1)),
            teachers=figures,
            poison_estimate=estimate_poison(labels, suspicion, valid),
            poison_probability=poison.float(),
            bad=bad,
            warnings=warnings,
            calibration=config.calibration,
        )

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write ``guard.safetensors`` and ``guard.json``.

        Args:
            folder: made where it is missing.
            identity: what the result belongs to, JSON values by field; checked by :meth:`load`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"map.{n}": t for n, t in vars(self.entropy_map).items()}
        tensors |= {f"split.{n}": t for n, t in vars(self.split).items()}
        tensors |= {n: getattr(self, n) for n in STORED}
        write_atomically(folder / "guard.safetensors", save(tensors))
        write_json(
            folder / "guard.json",
            {
                "format": FORMAT,
                "identity": dict(identity),
                "teachers": asdict(self.teachers),
                "poison_estimate": self.poison_estimate.as_dict(),
                "warnings": self.warnings,
                "class_knowledge": self.class_knowledge,
                "bad": {str(index): reason for index, reason in self.bad.items()},
            },
        )

    @classmethod
    def load(
        cls, folder: Path, identity: Mapping[str, Any], calibration: Calibration
    ) -> ScanResult:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is nothing saved in the folder.
            CacheMismatchError: it belongs to something else, or a newer version wrote it.
        """
        stored = read_saved(folder)
        check_fingerprint(folder, stored["identity"], json.loads(json.dumps(dict(identity))))
        tensors = load_file(folder / "guard.safetensors")
        parts = {
            kind: {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(kind + ".")}
            for kind in ("map", "split")
        }
        return cls(
            entropy_map=EntropyMap(**parts["map"]),
            split=Split(**parts["split"]),
            **{name: tensors[name] for name in STORED},
            teachers=ClipAgreement.from_dict(stored["teachers"]),
            poison_estimate=PoisonEstimate.from_dict(stored["poison_estimate"]),
            bad={int(index): reason for index, reason in stored["bad"].items()},
            warnings=stored["warnings"],
            class_knowledge=stored["class_knowledge"],
            calibration=calibration,
        )


def _teacher_of(
    clip: StoredLogits, scores: Sequence[LabelScores], wanted: Int[Tensor, "k"]
) -> Float[Tensor, "k classes"]:
    """Some samples' logits; of several CLIPs those of the one that contradicts the label most.

    In a mean, a CLIP with the attacker's backdoor would teach the target.
    """
    members = members_of(clip)
    if len(members) == 1:
        return clip.rows(wanted)
    each = torch.stack([one.rows(wanted).float().log_softmax(dim=1) for one in members])
    chosen = torch.stack([one_scores.score[wanted] for one_scores in scores]).argmax(dim=0)
    return each[chosen, torch.arange(len(wanted))]


def read_saved(folder: Path) -> dict[str, Any]:
    """The JSON part of a saved result.

    Raises:
        FileNotFoundError: there is none.
        CacheMismatchError: a newer version wrote it.
    """
    path = folder / "guard.json"
    if not path.is_file():
        raise FileNotFoundError(f"no saved guard in {folder}: {path.name} is missing")
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if stored["format"] > FORMAT:
        raise CacheMismatchError(
            f"{folder} was saved by a newer version of cgd-wrap; update cgd-wrap",
            {"format": (stored["format"], FORMAT)},
        )
    return stored


def check_clean_classes(
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    class_names: Sequence[str],
    *,
    allow_missing: bool,
) -> None:
    """Refuse, or with ``allow_missing`` warn of, a split that leaves a class without clean samples.

    Raises:
        DatasetError: naming the classes.
    """
    present = torch.bincount(labels, minlength=len(class_names)) > 0
    kept = torch.bincount(labels[clean], minlength=len(class_names)) > 0
    missing = [class_names[i] for i in (present & ~kept).nonzero().squeeze(1).tolist()]
    if not missing:
        return
    message = (
        f"no sample of {missing[:10]} is in the clean split: the model would unlearn these "
        "classes. Does CLIP know them by these names? Try other class_names or prompts"
    )
    if not allow_missing:
        raise DatasetError(f"{message}; allow_missing_classes=True goes on regardless.")
    logger.warning("%s.", message[0].upper() + message[1:])
