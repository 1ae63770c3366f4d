from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_data import Items, TintReader, made_up_table, pixels_and_labels, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cgd_wrap import BalancedSampler, CGDConfig, CGDGuard, CGDLoss
from cgd_wrap.data import SampleLayout
from cgd_wrap.train.dataset import GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.epochs import EpochRecord
from cgd_wrap.train.fit import fit
from cgd_wrap.train.loss import clean_share
from cgd_wrap.train.stopping import CleanAccuracyStopping


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its first mixed precision for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def separable() -> TensorDataset:
    """The made-up table's 24 samples; each image shows its label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 5
    images = torch.randn(24, 3, 4, 4, generator=generator) * 0.1
    images[:, 0] += labels[:, None, None] - 2.0
    return TensorDataset(images, labels)


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5))


def trained(
    model: nn.Module,
    *,
    mixed_precision: str = "no",
    stopping=None,
    base=None,
    keys=(0, 1),
    **changes,
) -> list[EpochRecord]:
    numbers = {"epochs": 6, "batch_size": 6, "learning_rate": 0.05, "unlearning_weight": 0.01}
    config, table = CGDConfig(**(numbers | changes)), made_up_table()
    epochs = EpochIndices(
        labels=table.tensors["labels"],
        clean=table.tensors["clean"],
        times=table.tensors["triggered"].long(),
    )
    dataset = GuardedDataset(base or separable(), SampleLayout(*keys))
    loader = DataLoader(dataset, config.batch_size, sampler=BalancedSampler(epochs))
    criterion = CGDLoss(table, clean_share(table, epochs.of(0)), config)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    return fit(
        model, loader, criterion, config, accelerator,
        stopping=stopping, image_key=keys[0], label_key=keys[1], progress=False,
    )  # fmt: skip


def test_the_loss_falls():
    model = net()
    before = copy.deepcopy(model.state_dict())
    history = trained(model, epochs=20, guidance_weight=1.0)
    assert history[-1].loss < history[0].loss
    assert history[-1].clean < 0.7 * history[0].clean
    assert any(not torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_records_hold_each_epoch():
    history = trained(net(), epochs=3)
    assert [record.epoch for record in history] == [1, 2, 3]
    for record in history:
        assert record.loss == pytest.approx(record.clean + record.guidance + record.unlearning)
        assert record.unlearning < 0 < record.guidance
        assert record.seconds > 0
        assert record.held_out_accuracy is None
        assert record.as_dict() == dataclasses.asdict(record)


def test_the_same_seed_gives_the_same_weights():
    one, other = net(), net()
    trained(one)
    torch.manual_seed(5)
    trained(other)
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_the_cosine_schedule_ends_near_zero():
    rates = [record.learning_rate for record in trained(net(), epochs=4)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * 0.05
    assert {r.learning_rate for r in trained(net(), epochs=2, lr_schedule="constant")} == {0.05}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.batches = net(), 0

    def forward(self, images: Tensor) -> Tensor:
        self.batches += self.training
        return self.inner(images)


def test_an_epoch_is_cut_off():
    model = Counting()
    history = trained(model, epochs=3, max_batches_per_epoch=2)
    assert model.batches == 6
    assert history[-1].learning_rate < 0.1 * 0.05  # the schedule knows of it


def test_epochs_that_are_cut_off_have_their_own_samples():
    seen: list[list[float]] = [[], [], []]

    def note(module, inputs):
        if module.training:
            seen[module.batches // 2] += inputs[0].sum(dim=(1, 2, 3)).tolist()

    model = Counting()
    model.register_forward_pre_hook(note)
    trained(model, epochs=3, max_batches_per_epoch=2)
    assert seen[0] != seen[1] != seen[2]


def test_mixed_precision_trains_and_leaves_the_model_in_fp32():
    seen = []
    model = net()
    hook = model[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    history = trained(model, mixed_precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert history[-1].loss < history[0].loss
    model(separable().tensors[0])
    hook.remove()
    assert seen[-1] == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[1].weight.zero_()
    assert not torch.equal(twin(separable().tensors[0]), model(separable().tensors[0]))


def test_stopping_ends_training_with_the_last_accepted_weights():
    images, labels = separable().tensors
    wrong = DataLoader(TensorDataset(images, (labels + 1) % 5), 8)  # learning looks like forgetting
    stopping = CleanAccuracyStopping(wrong, tolerance=1.0)
    model = net()
    history = trained(model, stopping=stopping, epochs=30)
    assert stopping.rule.stopped
    assert len(history) < 30
    assert [record.held_out_accuracy for record in history] == stopping.history
    with torch.no_grad():
        accuracy = (model(images).argmax(dim=1) == (labels + 1) % 5).double().mean()
    assert float(accuracy) == pytest.approx(stopping.history[-2])


def test_dicts_are_read_by_their_keys():
    rows = [{"pixel_values": image, "labels": int(y), "id": "x"} for image, y in separable()]
    as_dicts, as_tuples = net(), net()
    trained(as_dicts, base=Items(rows), keys=("pixel_values", "labels"))
    trained(as_tuples)
    assert all(map(torch.equal, as_dicts.parameters(), as_tuples.parameters()))


# --- guard.fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_guard_fit_trains_on_dicts_and_ends_in_eval_mode(mixed_precision):
    rows = [{"pixel_values": image, "labels": label} for image, label in tensors()]
    config = CGDConfig(
        suspicious_epochs=1, suspicious_side=16, batch_size=32, epochs=3, holdout_fraction=0.1,
        mixed_precision=mixed_precision, learning_rate=0.1, tolerance=100.0,
    )  # fmt: skip
    model = tiny_net()
    guard = CGDGuard(
        model, rows, ["red", "green", "blue"], clip=TintReader(), config=config, progress=False
    ).scan()
    history = guard.fit(epochs=4)
    assert not any(module.training for module in model.modules())
    assert len(history) == 4
    assert history[-1].clean < history[0].clean
    assert history[-1].held_out_accuracy > 0.5
    assert guard.config.epochs == 3


def test_guard_fit_stops_by_the_users_validation_data():
    pixels, labels = pixels_and_labels()
    guard = CGDGuard(
        tiny_net(), tensors(), ["red", "green", "blue"], clip=TintReader(), progress=False,
        config=CGDConfig(
            suspicious_epochs=1, suspicious_side=16, batch_size=32, holdout_fraction=0.0
        ),
    ).scan()  # fmt: skip
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    validation = DataLoader(TensorDataset(images[:30], torch.tensor(labels[:30])), 10)
    history = guard.fit(epochs=1, validation_loader=validation)
    assert history[0].held_out_accuracy is not None
    assert guard.fit(epochs=1)[0].held_out_accuracy is None
