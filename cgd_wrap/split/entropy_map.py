"""The entropy map: where each sample stands under CLIP and under the suspicious model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.errors import DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.functional import Split

logger = escaped_logger(__name__)


@dataclass(frozen=True, eq=False)
class EntropyMap:
    """The NLL of each given label under CLIP and under the suspicious model, and the two ranks.

    A rank is the place of a sample's NLL among the NLLs of all N readable samples, divided by N.
    Unreadable samples have NaN throughout.

    Attributes:
        clip_nll: NLL under CLIP's zero-shot logits, float32, nats.
        suspicious_nll: NLL under the suspicious model, float32, nats.
        clip_rank: rank of ``clip_nll``, float64 in (0, 1]; near 1: CLIP contradicts the label.
        suspicious_rank: rank of ``suspicious_nll``, float64 in (0, 1]; near 0: the label was
            learned fast.
    """

    clip_nll: Float[Tensor, "n"]
    suspicious_nll: Float[Tensor, "n"]
    clip_rank: Float[Tensor, "n"]
    suspicious_rank: Float[Tensor, "n"]

    def __len__(self) -> int:
        return self.clip_nll.numel()

    @classmethod
    def from_logits(
        cls,
        clip_logits: Float[Tensor, "n classes"],
        suspicious_logits: Float[Tensor, "n classes"],
        labels: Int[Tensor, "n"],
        *,
        reference_scores: bool = False,
    ) -> EntropyMap:
        """Build the map from the logits of all samples.

        Args:
            clip_logits: CLIP's zero-shot logits.
            suspicious_logits: the suspicious model's logits, averaged over its runs.
            labels: the given labels.
            reference_scores: take the authors' float32 scores and tie order, as their files do.
        """
        score = (
            functional.reference_label_nll
            if reference_scores
            else functional.label_log_odds_against
        )
        return cls.from_scores(
            score(clip_logits, labels),
            score(suspicious_logits, labels),
            reference_scores=reference_scores,
        )

    @classmethod
    def from_scores(
        cls,
        clip_score: Float[Tensor, "n"],
        suspicious_score: Float[Tensor, "n"],
        *,
        valid: Bool[Tensor, "n"] | None = None,
        reference_scores: bool = False,
    ) -> EntropyMap:
        """Build the map from log-odds against the label, or from the authors' NLLs.

        Args:
            clip_score: :func:`~cgd_wrap.functional.scores.label_log_odds_against` of CLIP's logits;
                with ``reference_scores``,
                :func:`~cgd_wrap.functional.scores.reference_label_nll` of CLIP's logits.
            suspicious_score: the corresponding score of the suspicious model's logits.
            valid: False for unreadable samples. Default: all are readable.
            reference_scores: whether the scores are the authors' NLLs.
        """
        columns = []
        if valid is not None and bool(valid.all()):
            valid = None
        for score in (clip_score, suspicious_score):
            rank = functional.reference_rank if reference_scores else functional.normalised_rank
            nll = score.float() if reference_scores else functional.nll_from_log_odds(score)
            if valid is None:
                columns += [nll, rank(score)]
            else:
                columns += [_spread(nll[valid], valid), _spread(rank(score[valid]), valid)]
        clip_nll, clip_rank, suspicious_nll, suspicious_rank = columns
        return cls(clip_nll, suspicious_nll, clip_rank, suspicious_rank)

    def split(
        self,
        *,
        sigma_clean: float = 0.2,
        sigma_triggered: float = 0.1,
        sigma_slow: float | None = None,
    ) -> Split:
        """Split the samples by their ranks.

        Arguments are those of :func:`~cgd_wrap.functional.split.split_by_rank`.

        Raises:
            DatasetError: all scores of one model are equal, so that there is nothing to rank.
        """
        for name, cut in (("clip", 1 - sigma_clean), ("suspicious", sigma_clean)):
            _check_ties(name, getattr(self, f"{name}_nll"), getattr(self, f"{name}_rank"), cut)
        return functional.split_by_rank(
            self.clip_rank,
            self.suspicious_rank,
            sigma_clean=sigma_clean,
            sigma_triggered=sigma_triggered,
            sigma_slow=sigma_slow,
        )


def _spread(values: Float[Tensor, "k"], valid: Bool[Tensor, "n"]) -> Float[Tensor, "n"]:
    whole = torch.full((valid.numel(),), math.nan, dtype=values.dtype)
    whole[valid] = values
    return whole


def _check_ties(name: str, nll: Float[Tensor, "n"], rank: Float[Tensor, "n"], cut: float) -> None:
    """Refuse scores that are all equal; warn if equal scores fall on both sides of a threshold."""
    below, above = nll[rank <= cut], nll[rank > cut]
    known = below.numel() + above.numel()  # the others are NaN
    sides = [side.aminmax() for side in (below, above) if side.numel()]
    if sides and bool(sides[0].min == sides[-1].max):
        raise DatasetError(
            f"all {known} samples have the same {name} score ({float(sides[0].min):.4g} nats), so "
            "ranks mean nothing. Check the class names and the models: do their outputs vary?"
        )
    if len(sides) == 2 and bool(sides[0].max == sides[1].min):
        tied = int((nll == sides[0].max).sum()) / known
        if tied > 1e-3:
            logger.warning(
                "%.1f%% of the samples have the same %s score, across the threshold at rank %.2f: "
                "which of them counts as clean is arbitrary.", 100 * tied, name, cut,
            )  # fmt: skip
