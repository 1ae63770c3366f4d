"""The drill: plant a known backdoor in a copy of a data set, train, defend, and measure."""

from __future__ import annotations

from cgd_wrap.drill.drilling import drill
from cgd_wrap.drill.experiment import Experiment, transformed
from cgd_wrap.drill.outcome import Outcome
from cgd_wrap.drill.training import Recipe, train_classifier

__all__ = ["Experiment", "Outcome", "Recipe", "drill", "train_classifier", "transformed"]
