"""The formulas of CGD as pure functions over tensors.

The classes of ``cgd_wrap`` hold state and call these functions. Symbols are those of the paper
(arXiv 2507.05113); NLL stands for the negative log-likelihood of the given label, in nats.
"""

from __future__ import annotations

from cgd_wrap.functional.loss import (
    Normalisers,
    SampleWeights,
    cgd_loss,
    cgd_loss_terms,
    doubted_teacher,
)
from cgd_wrap.functional.loss_terms import LossTerms
from cgd_wrap.functional.scores import (
    auroc,
    label_log_odds_against,
    label_nll,
    log_odds_against_all,
    nll_from_log_odds,
    normalised_rank,
    reference_label_nll,
    reference_rank,
    share_by_class,
)
from cgd_wrap.functional.split import (
    Split,
    balanced_indices,
    class_draws,
    corner_weight,
    draw_weight,
    members_by_class,
    split_by_rank,
)

__all__ = [
    "LossTerms",
    "Normalisers",
    "SampleWeights",
    "Split",
    "auroc",
    "balanced_indices",
    "cgd_loss",
    "cgd_loss_terms",
    "class_draws",
    "corner_weight",
    "doubted_teacher",
    "draw_weight",
    "label_log_odds_against",
    "label_nll",
    "log_odds_against_all",
    "members_by_class",
    "nll_from_log_odds",
    "normalised_rank",
    "reference_label_nll",
    "reference_rank",
    "share_by_class",
    "split_by_rank",
]
