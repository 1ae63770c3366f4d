"""FAULTS row 53: numbers that stop being numbers end a training, and nothing is called repaired."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from tiny_data import NAMES, Items, TintReader, quick_config, tensors, tiny_net
from torch import nn
from torch.utils.data import DataLoader

from cgd_wrap import CGDConfig, CGDGuard, TrainingDivergedError
from cgd_wrap.drill import train_classifier
from cgd_wrap.drill.training import Recipe
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.suspicious_training import train_suspicious


def guard_of(model: nn.Module | None = None, **changes) -> CGDGuard:
    config = quick_config(**({"epochs": 3, "batch_size": 24, "learning_rate": 0.02} | changes))
    return CGDGuard(
        model or tiny_net(), tensors(), NAMES, clip=TintReader(), config=config, progress=False,
        suspicious=tiny_net(3),
    ).scan()  # fmt: skip


class Spoilt(nn.Module):
    """A network that goes wrong at a forward pass of the training, counted from 1."""

    def __init__(self, at: int, kind: str) -> None:
        super().__init__()
        self.net, self.at, self.kind, self.passes = tiny_net(), at, kind, 0
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        logits = self.net(images)
        if self.training:
            self.passes += 1
            if self.passes == self.at:
                return self.spoilt(logits)
        return logits

    def spoilt(self, logits):
        if self.kind == "loss":
            return logits * math.nan
        if self.kind == "gradient":  # of a square root at 0; the loss is what it was
            return logits + 0 * (logits.detach() * 0 + self.unused.sum() * 0).abs().sqrt().sum()
        with torch.no_grad():
            self.unused.fill_(math.inf)
        return logits


def copied(model: nn.Module):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(model: nn.Module, state) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("norm", [1.0, None])
def test_fit_ends_with_the_step_and_the_last_good_weights(kind, rule, norm):
    changes = {"holdout_fraction": 0.1 if rule else 0.0, "max_gradient_norm": norm}
    model = Spoilt(0, kind)
    guard, after = guard_of(model, **changes), []
    batches = len(guard.protect(DataLoader(guard.base, 24))[0])
    model.at = 2 * batches + 3  # in the third epoch
    step = 3 * batches if kind == "weight" else 2 * batches + 3
    said = {
        "loss": rf"the loss of step {step} is NaN or infinite, or beyond 2e\+07 nats",
        "gradient": f"the gradient of step {step} is NaN or infinite",
        "weight": f"by step {step}, 'unused' holds NaN or infinite values",
    }[kind]
    tries = "lower learning_rate than 0.02, or max_gradient_norm="
    with pytest.raises(TrainingDivergedError, match=rf"{said} \(epoch 3 of 3\).*{tries}") as found:
        guard.fit(on_epoch=lambda record, model: after.append(copied(model)))
    assert (found.value.step, found.value.epoch) == (step, 3)
    assert len(after) == 2
    assert equal(model, after[-1])
    assert not model.training


def test_in_the_first_epoch_the_weights_from_before_come_back(tmp_path):
    model = Spoilt(2, "loss")
    guard, before = guard_of(model), copied(model)
    with pytest.raises(TrainingDivergedError, match="last good weights again"):
        guard.fit(checkpoint_dir=tmp_path)
    assert equal(model, before)
    assert list(tmp_path.glob("*")) == []


def test_a_learning_rate_beyond_reason_is_no_training():
    with pytest.raises(TrainingDivergedError, match=r"lower learning_rate than 1000000\.0"):
        guard_of(learning_rate=1e6, max_gradient_norm=None).fit()


def test_the_checkpoint_of_a_diverged_training_is_gone(tmp_path):
    """Otherwise the next try, with a lower rate, would be refused because of it."""
    guard = guard_of(Spoilt(11, "loss"))
    with pytest.raises(TrainingDivergedError):
        guard.fit(checkpoint_dir=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
    assert len(guard.fit(checkpoint_dir=tmp_path / "fit", learning_rate=0.01)) == 3


def test_infinite_buffers_of_a_model_are_its_own_business():
    model = tiny_net()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    assert len(guard_of(model).fit()) == 3


def test_the_error_can_be_sent_to_another_process():
    error = TrainingDivergedError("words", step=7, epoch=2)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.step, again.epoch) == ("words", 7, 2)


# --- the library's other trainings --------------------------------------------------------------


class Half(nn.Module):
    """Overflows under autocast, where products are taken in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(12, 2)

    def forward(self, images):
        flat = self.flat(images) * 3e4
        product = flat @ torch.eye(12)  # fp16 under autocast: at most 65504
        return self.head(product * 3e-4 / 9)


def suspicious(model: nn.Module, autocast, **changes) -> nn.Module:
    images = Items([torch.full((3, 2, 2), 3.0 * (i % 2)) for i in range(32)])
    labels = torch.arange(32) % 2
    config = CGDConfig(suspicious_epochs=2, suspicious_batch_size=8, **changes)
    runtime = Runtime(torch.device("cpu"), autocast=autocast)
    return train_suspicious(
        model, images, labels, torch.arange(32), config, runtime, progress=False
    )


def half_precision():
    return torch.autocast("cpu", torch.float16)


def no_autocast():
    return torch.autocast("cpu", enabled=False)


def test_a_suspicious_model_that_overflows_is_trained_again_in_full_precision(caplog):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Half()
    expected = suspicious(copy.deepcopy(model), no_autocast)
    found = suspicious(model, half_precision)
    assert "trained again in full precision" in caplog.text
    assert equal(found, expected.state_dict())


def test_a_suspicious_model_that_diverges_is_an_error_and_is_not_stored(tmp_path):
    model = tiny_net()
    config = quick_config(suspicious_learning_rate=1e38, suspicious_optimizer="sgd")
    guard = CGDGuard(
        model, tensors(), NAMES, clip=TintReader(), config=config, cache_dir=tmp_path,
        progress=False,
    )  # fmt: skip
    with pytest.raises(
        TrainingDivergedError, match=r"has diverged: '.*' is NaN or infinite, as is"
    ):
        guard.scan()
    assert not list(tmp_path.rglob("run-*"))


def test_a_victim_that_diverges_is_an_error():
    """Of a drill, and of the demo: its figures would be those of no backdoor at all."""
    items = Items([(torch.rand(3, 8, 8), i % 3) for i in range(30)])
    recipe = Recipe(epochs=4, batch_size=8, max_rate=1e38)
    with pytest.raises(TrainingDivergedError, match="training of Sequential has diverged"):
        train_classifier(tiny_net(), items, recipe, seed=0, title="", progress=False)
