from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_data import tiny_net
from torch import nn
from torch.utils.data import Dataset

from cgd_wrap import CGDConfig
from cgd_wrap.errors import CGDError
from cgd_wrap.models.weights import fresh_copy
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.suspicious_training import train_suspicious

# --- training -----------------------------------------------------------------------------------


class Bright(Dataset):
    """Class 1 is bright. Samples from 48 on must not be read."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index):
        if index >= 48:
            raise AssertionError(f"sample {index} was read")
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 8, 8, generator=generator) * 0.3 + index % 2


LABELS = torch.arange(64) % 2
READABLE = torch.arange(48)


def trained(samples: int = len(READABLE), **changes) -> nn.Module:
    numbers = {"suspicious_epochs": 4, "suspicious_batch_size": 8, "suspicious_learning_rate": 0.01}
    return train_suspicious(
        fresh_copy(tiny_net(classes=2), seed=0), Bright(), LABELS, READABLE[:samples],
        CGDConfig(**(numbers | changes)), Runtime(torch.device("cpu")), progress=False,
    )  # fmt: skip


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.05)])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_it_learns_and_reads_only_the_given_samples(optimizer, rate, schedule):
    model = trained(
        suspicious_optimizer=optimizer, suspicious_learning_rate=rate, suspicious_schedule=schedule
    )
    assert not model.training
    images = torch.stack([Bright()[i] for i in range(48)])
    with torch.no_grad():
        loss = F.cross_entropy(model(images), LABELS[:48])
    assert loss < 0.3


def test_the_rate_falls_to_zero_or_stays(monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )  # fmt: skip
    trained()
    assert len(rates) == 24
    assert max(rates) > 0.009
    assert rates[-1] == 0
    rates.clear()
    trained(suspicious_schedule="constant")
    assert set(rates) == {0.01}


def test_it_is_reproducible_and_leaves_the_global_stream_alone():
    one = trained().state_dict()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    same, other = trained().state_dict(), trained(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_last_batch_of_one_sample_is_left_out():
    model = trained(47, suspicious_batch_size=23, suspicious_epochs=1)  # 23 + 23 + 1 samples
    assert model[1].num_batches_tracked == 2


def test_small_data_sets_get_small_batches():
    model = trained(suspicious_batch_size=256, suspicious_epochs=1)
    assert model[1].num_batches_tracked == 2  # of 32 and 16 samples


def test_memory_that_runs_out_names_the_batch_size():
    """Row 40: a smaller batch would train another model, so that is the user's choice."""

    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, images):
            return self.head(torch.empty(2**60))

    with pytest.raises(CGDError, match=r"in a step of 8 samples; suspicious_batch_size .*allocate"):
        train_suspicious(
            Greedy(), Bright(), LABELS, READABLE, CGDConfig(suspicious_batch_size=8),
            Runtime(torch.device("cpu")), progress=False,
        )  # fmt: skip
