"""Scoring the given label of each sample by the logits of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.data.probes import spread
from cgd_wrap.scan.store import BadRows
from cgd_wrap.scan.stored_logits import StoredLogits

COMPARED = 4096


@dataclass(frozen=True, eq=False)
class LabelScores:
    """A model's scores of the given labels of all samples.

    Attributes:
        score: log-odds against the label, float64, nats; or the authors' NLL.
        choice: the model's first choice of a class, int64; means nothing for bad samples.
        bad: samples that the model couldn't score: index -> [reason, message, path].
        against: score against every class of a few samples, float64 [k, C], those of
            :func:`compared`; none where nobody asks for them.
        sureness: log-probability of the first choice, float16; none where nobody asks for it.
    """

    score: Float[Tensor, "n"]
    choice: Int[Tensor, "n"]
    bad: BadRows
    against: Float[Tensor, "k classes"] = field(
        default_factory=lambda: torch.empty(0, 0, dtype=torch.float64)
    )
    sureness: Float[Tensor, "m"] = field(default_factory=lambda: torch.empty(0).half())

    @classmethod
    def of(
        cls,
        logits: StoredLogits,
        labels: Int[Tensor, "n"],
        *,
        reference_scores: bool,
        compare: bool = False,
    ) -> LabelScores:
        """Score the labels by the stored logits of a pass, unit by unit.

        Args:
            logits: the logits of the pass.
            labels: given labels.
            reference_scores: take :func:`~cgd_wrap.functional.scores.reference_label_nll` in place
                of :func:`~cgd_wrap.functional.scores.label_log_odds_against`.
            compare: score a few samples against every class, too, and tell how sure the model is.
        """
        score = (
            functional.reference_label_nll
            if reference_scores
            else functional.label_log_odds_against
        )
        few = compared(len(labels)) if compare else labels[:0]
        scores, choices, against, sureness, bad = [], [], [], [], BadRows()
        for rows, values, bad_here in logits.units():
            scores.append(score(values, labels[rows.start : rows.stop]))
            choices.append(values.argmax(dim=1))
            here = few[(few >= rows.start) & (few < rows.stop)] - rows.start
            against.append(scores_against_all(values[here], reference_scores=reference_scores))
            if compare:
                sureness.append(values.float().log_softmax(dim=1).amax(dim=1).half())
            bad |= bad_here
        return cls(
            torch.cat(scores), torch.cat(choices), bad, torch.cat(against),
            torch.cat([torch.empty(0).half(), *sureness]),
        )  # fmt: skip


def compared(rows: int) -> Int[Tensor, "k"]:
    """Indices of the samples whose scores against every class are kept: enough for a quantile."""
    return torch.tensor(spread(rows, COMPARED), dtype=torch.int64)


def scores_against_all(
    logits: Float[Tensor, "n classes"], *, reference_scores: bool
) -> Float[Tensor, "n classes"]:
    """Score every class of each sample, as its label is scored."""
    if reference_scores:
        return -logits.double().log_softmax(dim=1)
    return functional.log_odds_against_all(logits)


def choosing_clip(verdicts: Sequence[LabelScores]) -> Int[Tensor, "n"]:
    """Position of the CLIP that contradicts each label most, among several."""
    return torch.stack([verdict.score for verdict in verdicts]).argmax(dim=0)


def contradicting_most(verdicts: Sequence[LabelScores]) -> Float[Tensor, "n"]:
    """Highest score of each label among several CLIPs: no CLIP alone can vouch for a label.

    A CLIP that learned the same backdoor agrees with poisoned labels; another CLIP does not.
    """
    return torch.stack([verdict.score for verdict in verdicts]).amax(dim=0)


def all_bad(verdicts: Sequence[LabelScores]) -> BadRows:
    """Samples that any of the models couldn't score, with the first such model's reason."""
    bad: BadRows = {}
    for verdict in reversed(verdicts):
        bad |= verdict.bad
    return dict(sorted(bad.items()))
