from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from launching import run_python
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_run import SEED, SHARDINGS, Classifier, Samples, guard_of, trainer_of
from missing import told_without
from tiny_data import quick_config, reads_of
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from user_loop import train_epoch

from cgd_wrap.adapters.lightning import CGDCallback
from cgd_wrap.errors import CGDError
from cgd_wrap.guard import CGDGuard
from cgd_wrap.train.sampler import BalancedSampler

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # Lightning's advice, for any loader
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You defined a `validation_step` but have no",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",  # torch's, of Lightning
)


def loader_of(data, **options) -> DataLoader:
    return DataLoader(data, 16, shuffle=True, **options)


def guarded(config=None, *, workers=0, **callback_options):
    """A module, its guarded loader, and the callback that watches them."""
    module, data = Classifier(), Samples()
    guard = guard_of(module, data, config)
    loader, module.criterion = guard.protect(loader_of(data, num_workers=workers), module.criterion)
    callback = CGDCallback(guard, **callback_options)
    data.reads.zero_()  # it has tried one held-out sample
    return module, loader, callback


# --- what the guard does ------------------------------------------------------------------------


def test_a_guarded_run_is_the_guarded_plain_loop(tmp_path):
    module, loader, callback = guarded()
    callback.stopping = None  # it would read the held-out samples, too
    stream = torch.get_rng_state()
    trainer_of(callbacks=[callback]).fit(module, loader)
    drawn = loader.dataset.base.reads.clone()
    after = torch.get_rng_state()

    model, plain, _ = guarded()
    plain.sampler.set_run(2)
    data, criterion = plain.dataset.base, model.criterion
    optimizer = model.configure_optimizers()
    torch.set_rng_state(stream)
    losses = [loss for _ in range(2) for loss in train_epoch(model, plain, criterion, optimizer)]
    assert len(losses) > 10
    assert module.losses == pytest.approx(losses, rel=1e-5)
    assert torch.equal(drawn, data.reads)
    assert torch.equal(after, torch.get_rng_state())
    for mine, theirs in zip(module.net.parameters(), model.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("workers", "exposure_rate"), [(0, 0.0), (1, 0.0), (1, 0.5)])
def test_each_sample_is_drawn_as_often_as_the_index_map_says(workers, exposure_rate):
    config = quick_config(seed=SEED, exposure_rate=exposure_rate, holdout_fraction=0.2)
    module, loader, callback = guarded(config, workers=workers)
    callback.stopping = None
    trainer_of(callbacks=[callback]).fit(module, loader)
    expected = reads_of(callback.guard.epoch_indices().in_run_of(2), 2, loader.batch_size)
    assert torch.equal(loader.dataset.base.reads, expected)
    assert module.criterion.untagged_batches == 0


def test_the_balanced_view_serves_a_loader_of_lightnings_own():
    module, data = Classifier(), Samples()
    config = quick_config(seed=SEED, exposure_rate=0.0, holdout_fraction=0.2)
    guard = guard_of(module, data, config)
    module.criterion = guard.loss(module.criterion)
    callback = CGDCallback(guard)
    callback.stopping = None
    data.reads.zero_()
    loader = DataLoader(guard.balanced_view, 16, shuffle=True)
    trainer_of(callbacks=[callback]).fit(module, loader)
    indices = guard.epoch_indices().in_run_of(2)
    assert torch.equal(data.reads, reads_of(indices, 2, batch_size=16))
    assert not torch.equal(indices.of(0), indices.of(1))  # the callback moved the view on


def test_the_parts_of_the_loss_are_logged(tmp_path):
    module, loader, callback = guarded()
    logger = CSVLogger(tmp_path)
    trainer_of(callbacks=[callback], logger=logger).fit(module, loader)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train_loss"]]
    assert len(steps) == len(module.losses)
    for row in steps:
        parts = [float(row[f"cgd_{name}"]) for name in ("clean", "guidance", "unlearning")]
        assert sum(parts) == pytest.approx(float(row["train_loss"]), abs=1e-5)
    assert any(float(row["cgd_unlearning"]) < 0 for row in steps)
    held_out = [row["cgd_held_out_accuracy"] for row in rows if row["cgd_held_out_accuracy"]]
    assert [float(value) for value in held_out] == pytest.approx(callback.stopping.history)


def test_validation_is_untouched():
    module, loader, callback = guarded()
    validation = DataLoader(Samples(50), 16)
    (guarded_outcome,) = trainer_of(callbacks=[callback]).validate(
        module, validation, verbose=False
    )
    (plain_outcome,) = trainer_of().validate(Classifier(), validation, verbose=False)
    assert guarded_outcome == plain_outcome
    trainer = trainer_of(callbacks=[callback])  # and within training
    trainer.fit(module, loader, validation)
    module.criterion = nn.CrossEntropyLoss()
    (again,) = trainer_of().validate(module, validation, verbose=False)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(again["val_loss"])


# --- stopping, checkpoints ----------------------------------------------------------------------


class Spoiler(Callback):
    """Ruins the weights at the start of an epoch (from 0)."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                pl_module.net[-1].weight.neg_().mul_(50)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_tolerance_rule_stops_and_restores(tmp_path, resumed):
    def run(*callbacks, checkpoint=None):
        module, data = Classifier(), Samples()
        guard = guard_of(module, data, config)
        loader, module.criterion = guard.protect(loader_of(data), module.criterion)
        callback = CGDCallback(guard, tolerance=15.0)
        keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = trainer_of(
            max_epochs=6, callbacks=[callback, keeper, *callbacks], enable_checkpointing=True
        )
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return module, callback, trainer

    config, checkpoint = quick_config(seed=SEED, holdout_fraction=0.3), None
    if resumed:
        run()
        checkpoint = tmp_path / "epoch=0.ckpt"
    # Resumed, the first epoch is spoilt: the checkpoint's weights are the accepted ones.
    module, callback, trainer = run(Spoiler(1 if resumed else 2), checkpoint=checkpoint)
    accuracies = callback.stopping.history
    assert len(accuracies) == (2 if resumed else 3)
    assert accuracies[-1] < max(accuracies) - 0.15
    assert trainer.current_epoch == len(accuracies)
    images, labels = zip(*callback.stopping.loader.dataset, strict=True)
    with torch.no_grad():
        found = module.eval()(torch.stack(images)).argmax(dim=1)
    accuracy = float((found == torch.stack(labels)).double().mean())
    assert accuracy == pytest.approx(accuracies[-2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_draws_what_the_whole_one_would(tmp_path, workers):
    def run(checkpoint=None):
        module, loader, callback = guarded(workers=workers)
        keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer_of(callbacks=[callback, keeper], max_epochs=3, enable_checkpointing=True).fit(
            module, loader, ckpt_path=checkpoint
        )
        return module, callback

    whole, _ = run()
    again, callback = run(tmp_path / "epoch=0.ckpt")
    assert len(again.losses) == 2 * len(whole.losses) // 3
    assert again.losses == pytest.approx(whole.losses[-len(again.losses) :], rel=1e-6)
    assert len(callback.stopping.history) == 3


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (DataLoader, 0),
        pytest.param(DataLoader, 1, marks=pytest.mark.slow),
        pytest.param(StatefulDataLoader, 0, marks=pytest.mark.slow),
        (StatefulDataLoader, 1),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before",  # true without the callback
    "ignore:'set_vital' is deprecated",  # torchdata 0.11 under torch 2.14
)
def test_a_run_resumed_in_mid_epoch_draws_what_was_left(tmp_path, kind, workers):
    """FAULTS row 60."""

    def run(checkpoint=None):
        module, data = Classifier(), Samples()
        guard = guard_of(module, data, quick_config(seed=SEED, exposure_rate=0.5))
        loader = kind(data, 16, shuffle=True, num_workers=workers)
        loader, module.criterion = guard.protect(loader, module.criterion)
        callback = CGDCallback(guard)
        keeper = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = trainer_of(callbacks=[callback, keeper], max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return module.losses, len(loader)

    whole, batches = run()
    for step in (batches + 2, 2 * batches):  # in the middle of the second epoch, and at its end
        left, _ = run(tmp_path / f"step={step}.ckpt")
        assert left == pytest.approx(whole[step:], rel=1e-6)


def test_a_loss_that_is_no_number_is_said_once_with_its_step(caplog):
    """FAULTS row 53: the host goes on, and nobody may take its weights for repaired."""
    module, loader, callback = guarded()

    class Overflow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                with torch.no_grad():
                    pl_module.net[-1].weight.fill_(float("inf"))

    trainer_of(callbacks=[callback, Overflow()]).fit(module, loader)
    said = [r.getMessage() for r in caplog.records if "NaN or infinite since" in r.getMessage()]
    assert len(said) == 1
    assert "since step 3: the training has diverged" in said[0]


def test_checkpoints_with_class_weights_go_from_guarded_to_unguarded_and_back(tmp_path):
    def weighted(*values: float) -> nn.Module:
        return nn.CrossEntropyLoss(weight=torch.tensor(values))

    module, data = Classifier(), Samples()
    guard = guard_of(module, data)
    loader, module.criterion = guard.protect(loader_of(data), weighted(1.0, 2.0, 3.0))
    trainer = trainer_of(max_epochs=1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "guarded.ckpt")
    state = torch.load(tmp_path / "guarded.ckpt", weights_only=True)["state_dict"]
    plain = Classifier()
    plain.criterion = weighted(0.0, 0.0, 0.0)
    assert list(plain.state_dict()) == list(state)
    plain.load_state_dict(state)
    assert plain.criterion.weight.tolist() == [1.0, 2.0, 3.0]
    plain.criterion.weight.fill_(7.0)
    module.load_state_dict(plain.state_dict())
    assert module.criterion.criterion.weight.tolist() == [7.0, 7.0, 7.0]


# --- processes ----------------------------------------------------------------------------------


def test_two_processes_deal_the_samples_between_them(tmp_path):
    # In a process of its own: a process that has used OpenMP can't fork.
    code = f"import lightning_run; lightning_run.two_processes({str(tmp_path)!r})"
    here = Path(__file__).parent
    run_python("-c", code, folder=here, timeout=200, imports=["lightning.pytorch"])
    for name in SHARDINGS:
        outcome = torch.load(tmp_path / f"{name}.pt")
        repeated = outcome["read"] - outcome["expected"]
        assert bool((repeated >= 0).all()), name
        assert int(repeated.sum()) <= 3, name  # epochs: of an odd number, one is dealt twice
        logged = outcome["metrics"]
        parts = [logged[f"cgd_{part}"] for part in ("clean", "guidance", "unlearning")]
        assert sum(parts) == pytest.approx(logged["train_loss"], rel=1e-5), name


def test_samples_that_would_be_dealt_twice_are_refused():
    module, loader, callback = guarded()
    twice = BalancedSampler(callback.guard.epoch_indices(), num_replicas=2, rank=0)
    wrapped = DistributedSamplerWrapper(twice, num_replicas=2, rank=0)  # what Lightning does
    loader = DataLoader(loader.dataset, 16, sampler=wrapped)
    with pytest.raises(ValueError, match=r"dealt to the processes twice.*use_distributed_sampler"):
        trainer_of(callbacks=[callback]).fit(module, loader)


# --- what is refused ----------------------------------------------------------------------------


def test_an_unguarded_loader_is_refused():
    module, _, callback = guarded()
    with pytest.raises(ValueError, match="trains on Samples, not on the guarded"):
        trainer_of(callbacks=[callback]).fit(module, loader_of(Samples()))
    assert module.losses == []


def test_a_module_without_the_guarded_loss_is_refused():
    module, loader, callback = guarded()
    module.criterion = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="Classifier holds no guarded loss: set the criterion"):
        trainer_of(callbacks=[callback]).fit(module, loader)


def test_overfit_batches_would_undo_the_balance():
    module, loader, callback = guarded()
    with (
        pytest.warns(UserWarning, match="turning off the train dataloader shuffling"),
        pytest.raises(ValueError, match="Turn off overfit_batches"),
    ):
        trainer_of(callbacks=[callback], overfit_batches=2).fit(module, loader)


def test_a_guard_must_have_scanned():
    guard = CGDGuard(Classifier(), Samples(), progress=False)
    with pytest.raises(CGDError, match="call scan"):
        CGDCallback(guard)


def test_the_older_package_name_works_too():
    import pytorch_lightning

    class OlderClassifier(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = Classifier()
            self.criterion = nn.CrossEntropyLoss()

        def training_step(self, batch, batch_idx):
            images, labels = batch
            return self.criterion(self.inner.net(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    module, data = OlderClassifier(), Samples()
    guard = guard_of(module.inner.net, data)
    loader, module.criterion = guard.protect(loader_of(data), module.criterion)
    callback = CGDCallback(guard)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, loader)
    assert {"cgd_clean", "cgd_held_out_accuracy"} <= set(trainer.callback_metrics)


def test_without_lightning_the_install_command_is_told(monkeypatch):
    told = told_without(
        monkeypatch, ["lightning", "pytorch_lightning"], "cgd_wrap.adapters.lightning"
    )
    assert "pip install 'cgd-wrap[lightning]'" in told
