"""What models say of the given labels, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cgd_wrap import functional
from cgd_wrap.scan.stored_logits import BadRows, StoredLogits


@dataclass(frozen=True, eq=False)
class LabelScores:
    """One model's view of all samples.

    Attributes:
        score: log-odds against the label, float64, nats; or the authors' NLL.
        choice: the class that it would choose, int64; means nothing for bad samples.
        bad: samples that it couldn't score: index -> [reason, message, path].
    """

    score: Float[Tensor, "n"]
    choice: Int[Tensor, "n"]
    bad: BadRows

    @classmethod
    def of(
        cls, logits: StoredLogits, labels: Int[Tensor, "n"], *, reference_scores: bool
    ) -> LabelScores:
        """Read a pass, unit by unit.

        Args:
            logits: of the pass.
            labels: given labels.
            reference_scores: :func:`functional.reference_label_nll` in place of
                :func:`functional.label_log_odds_against`.
        """
        score = (
            functional.reference_label_nll
            if reference_scores
            else functional.label_log_odds_against
        )
        scores, choices, bad = [], [], BadRows()
        for rows, values, bad_here in logits.units():
            scores.append(score(values, labels[rows.start : rows.stop]))
            choices.append(values.argmax(dim=1))
            bad |= bad_here
        return cls(torch.cat(scores), torch.cat(choices), bad)


def contradicting_most(verdicts: Sequence[LabelScores]) -> Float[Tensor, "n"]:
    """Each label's highest score among the models: one alone can't vouch for it.

    A CLIP that learned the same backdoor agrees with the poison's labels; another one does not.
    """
    return torch.stack([verdict.score for verdict in verdicts]).amax(dim=0)


def all_bad(verdicts: Sequence[LabelScores]) -> BadRows:
    """Samples that are bad for any of the models; the first one's reason stands."""
    bad: BadRows = {}
    for verdict in reversed(verdicts):
        bad |= verdict.bad
    return dict(sorted(bad.items()))
