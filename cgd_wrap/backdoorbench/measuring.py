"""Measuring a model as BackdoorBench does: accuracies and losses on three views of the test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap.backdoorbench.samples import BackdoorSamples
from cgd_wrap.metrics import BackdoorFigures
from cgd_wrap.models.outputs import logits_of
from cgd_wrap.models.prediction import evaluating
from cgd_wrap.randomness import kept_rng


@dataclass(frozen=True)
class BenchFigures:
    """The figures of a model on the test sets of an attack result.

    Attributes:
        rates: accuracies and success rate, each in [0, 1]. The natural rate is the share of the
            images that get the attacker's label before they are triggered.
        clean_loss: mean cross entropy on the clean test set, nats.
        triggered_loss: mean cross entropy on the triggered test set, with the attacker's labels,
            nats.
        robust_loss: mean cross entropy on the triggered test set, with the original labels, nats.
    """

    rates: BackdoorFigures
    clean_loss: float
    triggered_loss: float
    robust_loss: float

    def as_row(self) -> dict[str, float]:
        """The figures under BackdoorBench's column names; losses are means over samples."""
        return {
            "clean_test_loss_avg_over_batch": self.clean_loss,
            "bd_test_loss_avg_over_batch": self.triggered_loss,
            "ra_test_loss_avg_over_batch": self.robust_loss,
            "test_acc": self.rates.clean_accuracy,
            "test_asr": self.rates.attack_success_rate,
            "test_ra": self.rates.robust_accuracy,
            "natural_rate": self.rates.natural_rate,
        }


@dataclass(frozen=True)
class BenchData:
    """The test sets of an attack result, under the evaluation transform.

    Attributes:
        clean: the test set without triggers, ``(tensor, label)``, all classes.
        triggered: the test set with the attack's triggers.
        batch_size: images per step.
        num_workers: number of processes that read images.
    """

    clean: Any
    triggered: BackdoorSamples
    batch_size: int = 256
    num_workers: int = 0

    def measure(self, model: nn.Module) -> BenchFigures:
        """Measure a model; the model's modes and the random streams stay as they are."""
        clean, labels = self._outputs(model, self.clean)
        triggered, wanted = self._outputs(model, self.triggered)
        original = torch.tensor(self.triggered.original_targets)
        untriggered = clean[self.triggered.original_index].argmax(dim=1)
        chosen = triggered.argmax(dim=1)
        rates = BackdoorFigures(
            clean_accuracy=_share(clean.argmax(dim=1), labels),
            attack_success_rate=_share(chosen, wanted),
            robust_accuracy=_share(chosen, original),
            natural_rate=_share(untriggered, wanted),
        )
        losses = [(clean, labels), (triggered, wanted), (triggered, original)]
        return BenchFigures(rates, *(float(F.cross_entropy(*pair)) for pair in losses))

    @kept_rng()
    def _outputs(
        self, model: nn.Module, data: Any
    ) -> tuple[Float[Tensor, "n classes"], Int[Tensor, "n"]]:
        """Run a model over a test set: float32 logits and labels of all samples, on the CPU."""
        loader: DataLoader[Any] = DataLoader(
            data, batch_size=self.batch_size, num_workers=self.num_workers,
            generator=torch.Generator(),
        )  # fmt: skip
        device = next(model.parameters()).device
        logits, labels = [], []
        with evaluating(model), torch.no_grad():
            for images, targets in loader:
                logits.append(logits_of(model(images.to(device))).float().cpu())
                labels.append(targets)
        return torch.cat(logits), torch.cat(labels)


def _share(predictions: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    return float((predictions == labels).double().mean())
