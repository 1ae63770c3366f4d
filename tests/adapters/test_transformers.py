from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from launching import call_in_two
from missing import told_without
from tiny_data import NAMES, SIZE, as_tensor, pictures, quick_config, reads_of
from torch import nn
from torch.utils.data import IterableDataset
from torchvision.transforms import v2
from trainer_run import (
    Classifier,
    Samples,
    arguments,
    guard_of,
    guarded,
    one_of_two,
    outcome_of_run,
)
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from cgd_wrap.adapters.trainer_loss import TrainerLoss
from cgd_wrap.adapters.transformers import attach
from cgd_wrap.train.exposure import Draw

ALL_CLEAN = {
    "sigma_clean": 0.0, "sigma_triggered": 0.0, "sigma_slow": None, "holdout_fraction": 0.0,
    "exposure_rate": 0.0,
}  # fmt: skip


def vision_transformer() -> ViTForImageClassification:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0.2,
            )
        )  # fmt: skip


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# --- what stays as it was -----------------------------------------------------------------------


@pytest.mark.parametrize(("accumulation", "smoothing"), [(1, 0.0), (2, 0.1)])
def test_with_nothing_to_guard_a_run_is_the_unguarded_one(tmp_path, accumulation, smoothing):
    data, runs = Samples(poisoned=False), {}
    for name in ("guarded", "unguarded"):
        model = vision_transformer()
        changes = {"gradient_accumulation_steps": accumulation, "label_smoothing_factor": smoothing}
        settings = arguments(tmp_path, learning_rate=1e-3, eval_strategy="epoch", **changes)
        trainer = Trainer(model, settings, train_dataset=data, eval_dataset=Samples(30))
        guard = guard_of(model, data, quick_config(**ALL_CLEAN))
        assert guard.split.counts()["clean"] == SIZE
        if name == "guarded":
            attach(guard, trainer)
        else:  # the same order, which is all that the guard changes here
            order = guard.sampler(settings.seed)
            trainer._get_train_sampler = lambda train_dataset=None, order=order: order
        torch.manual_seed(1)
        trainer.train()
        runs[name] = trainer, torch.get_rng_state()
    (one, its_stream), (other, other_stream) = runs["guarded"], runs["unguarded"]
    for key, count in (("loss", None), ("grad_norm", None), ("eval_loss", 2)):
        assert len(logged(one, key)) == (count or 2 * -(-6 // accumulation))
        assert logged(one, key) == pytest.approx(logged(other, key), rel=2e-6)
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        # AdamW makes a step of a gradient that is nothing but roundings.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(its_stream, other_stream)


def test_evaluation_and_prediction_are_untouched(tmp_path):
    def metrics(prediction):
        right = prediction.predictions.argmax(axis=1) == prediction.label_ids
        return {"accuracy": float(right.mean())}

    data, held_out = Samples(), Samples(50)
    model = Classifier()
    outcomes = []
    for guard in (None, guard_of(model, data)):
        trainer = Trainer(
            model, arguments(tmp_path), train_dataset=data, eval_dataset=held_out,
            compute_metrics=metrics,
        )  # fmt: skip
        if guard:
            attach(guard, trainer)
        found = trainer.predict(held_out)
        timed = ("_runtime", "_second", "_time")
        values = {
            k: v for k, v in (trainer.evaluate() | found.metrics).items() if not k.endswith(timed)
        }
        outcomes.append((values, found.predictions.tolist(), found.label_ids.tolist()))
        assert trainer.evaluate(data)["eval_loss"] > 0  # the training data itself, unguarded
    (before, logits, labels), (after, same_logits, same_labels) = outcomes
    assert after == pytest.approx(before, rel=1e-6)
    assert {"eval_loss", "eval_accuracy", "test_loss"} <= set(after)
    assert (logits, labels) == (same_logits, same_labels)
    assert labels == [item["labels"] for item in held_out.items]


# --- what the guard adds ------------------------------------------------------------------------


@pytest.mark.parametrize("exposure_rate", [0.0, 0.5])
def test_each_sample_is_drawn_as_often_as_the_index_map_says(tmp_path, exposure_rate):
    config = quick_config(exposure_rate=exposure_rate, holdout_fraction=0.2)
    trainer, callback, data = guarded(tmp_path, config, data_seed=5)
    callback.stopping = None  # it would read the held-out samples, too
    trainer.train()
    expected = reads_of(callback.guard.epoch_indices(5).in_run_of(2), 2, 16)
    assert callback.guard.result.held_out.any()
    # Two more reads: the collate function was tried on the first two samples.
    assert data.read[:2] == [0, 1]
    assert torch.equal(torch.bincount(torch.tensor(data.read[2:]), minlength=SIZE), expected)
    assert callback.loss.loss.untagged_batches == 0


def table_of_pictures(side: int = 8) -> datasets.Dataset:
    images, labels = zip(*pictures(), strict=True)
    images = [image.resize((side, side)) for image in images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def with_pixels(batch):
    values = [as_tensor(image.convert("RGB")) for image in batch["image"]]
    return {"pixel_values": values, "label": batch["label"]}


def collate(samples, key="label"):
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    return {"pixel_values": pixels, "labels": torch.tensor([s[key] for s in samples])}


def test_a_transform_that_keeps_the_raw_image(tmp_path):
    # transformers' own run_image_classification.py: 12 px pictures, an 8 px model.
    table, model = table_of_pictures(side=12), vision_transformer()

    def add_pixels(batch):
        small = [image.convert("RGB").resize((8, 8)) for image in batch["image"]]
        return {**batch, "pixel_values": [as_tensor(image) for image in small]}

    table.set_transform(add_pixels)
    settings = arguments(tmp_path, remove_unused_columns=False)
    trainer = Trainer(model, settings, data_collator=collate, train_dataset=table)
    guard = guard_of(model, table)
    callback = attach(guard, trainer)
    trainer.train()
    assert callback.loss.loss.untagged_batches == 0
    blend = Draw(0, len(table) - 1, 0.5)
    plain, exposed = guard.dataset[0]["pixel_values"], guard.dataset[blend]["pixel_values"]
    other = guard.dataset[len(table) - 1]["pixel_values"]
    torch.testing.assert_close(exposed, (plain + other) / 2)
    assert not torch.equal(plain, exposed)


@pytest.mark.parametrize("collator", [None, collate])
def test_a_datasets_table_with_set_transform(tmp_path, collator):
    # As in transformers' own image-classification example.
    table = table_of_pictures()
    table.set_transform(with_pixels)
    model = vision_transformer()
    settings = arguments(tmp_path, remove_unused_columns=False, learning_rate=1e-3)
    trainer = Trainer(model, settings, data_collator=collator, train_dataset=table)
    guard = guard_of(model, table)
    callback = attach(guard, trainer)
    assert guard.class_names == NAMES
    trainer.train()
    assert callback.loss.loss.untagged_batches == 0
    assert len(logged(trainer, "cgd_clean")) == len(logged(trainer, "loss")) > 0
    assert abs(sum(logged(trainer, "cgd_unlearning"))) > 0
    assert table[0]["label"] == 0  # and not a tag


def test_gradient_accumulation_is_exact(tmp_path):
    weights, losses = [], []
    for accumulation in (1, 4):
        trainer, _, _ = guarded(
            tmp_path, None, Classifier(batch_norm=False),
            per_device_train_batch_size=16 // accumulation, max_grad_norm=0.0,
            gradient_accumulation_steps=accumulation, num_train_epochs=1,
        )  # fmt: skip
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_the_parts_of_the_loss_are_in_the_logs(tmp_path):
    seen = []

    class Reporter(TrainerCallback):  # such as TensorBoard's, which the Trainer calls before ours
        def on_log(self, args, state, control, logs=None, **others):
            seen.append(dict(logs))

    model, data = Classifier(), Samples()
    settings = arguments(tmp_path, logging_steps=2, gradient_accumulation_steps=2)
    trainer = Trainer(model, settings, train_dataset=data, callbacks=[Reporter()])
    attach(guard_of(model, data), trainer)
    trainer.train()
    parts = ("cgd_clean", "cgd_guidance", "cgd_unlearning")
    for logs in ([entry for entry in seen if "loss" in entry], trainer.state.log_history):
        entries = [entry for entry in logs if "loss" in entry]
        assert len(entries) >= 3
        for entry in entries:
            assert sum(entry[part] for part in parts) == pytest.approx(entry["loss"], abs=1e-4)
            assert entry["cgd_unlearning"] < 0 < entry["cgd_guidance"]
    assert len(logged(trainer, "cgd_held_out_accuracy")) == 2
    assert [e for e in seen if "cgd_held_out_accuracy" in e]


def test_tensorboard_reads_them(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer, _, _ = guarded(tmp_path, report_to=["tensorboard"])
    trainer.train()
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    steps = {e.step for e in events.Scalars("train/cgd_clean")}
    assert steps == {e.step for e in events.Scalars("train/loss")}
    assert len(events.Scalars("train/cgd_held_out_accuracy")) == 2


class Spoiler(TrainerCallback):
    """Ruins the weights at the start of an epoch (from 0)."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.begun = epoch, 0

    def on_epoch_begin(self, args, state, control, model=None, **others):
        if round(state.epoch or 0) == self.epoch:
            with torch.no_grad():
                model.net[-1].weight.neg_().mul_(50)


class Overflow(TrainerCallback):
    """Makes a weight infinite after a step."""

    def on_step_end(self, args, state, control, model=None, **others):
        if state.global_step == 2:
            with torch.no_grad():
                model.net[-1].weight.fill_(float("inf"))


def test_a_loss_that_is_no_number_is_said_once_with_its_step(tmp_path, caplog):
    """FAULTS row 53: the Trainer's own logs show such a loss as 0."""
    trainer, _, _ = guarded(tmp_path, gradient_accumulation_steps=2, logging_steps=1)
    trainer.add_callback(Overflow())
    trainer.train()
    said = [r.getMessage() for r in caplog.records if "NaN or infinite since" in r.getMessage()]
    assert len(said) == 1
    assert "since step 3: the training has diverged" in said[0]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_tolerance_rule_stops_and_restores(tmp_path, resumed):
    config = quick_config(tolerance=15.0, holdout_fraction=0.3)
    changes = {"num_train_epochs": 6, "learning_rate": 0.02, "save_strategy": "epoch"}
    trainer, callback, _ = guarded(tmp_path, config, **changes)
    if resumed:
        trainer.train()
        trainer, callback, _ = guarded(tmp_path, config, **changes)
    trainer.add_callback(Spoiler(2))
    trainer.train(
        resume_from_checkpoint=str(next(iter(checkpoints(tmp_path)))) if resumed else None
    )
    accuracies = callback.stopping.history
    assert len(accuracies) == 3
    assert accuracies[2] < max(accuracies) - 0.15
    assert logged(trainer, "cgd_held_out_accuracy") == accuracies
    assert trainer.state.epoch == 3
    images, labels = zip(*callback.stopping.loader.dataset, strict=True)
    with torch.no_grad():
        found = trainer.model.eval()(torch.stack(images))["logits"].argmax(dim=1)
    assert float((found == torch.stack(labels)).double().mean()) == accuracies[1]


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


# --- resume and processes -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_draws_what_the_whole_one_would(tmp_path, workers):
    changes = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
    changes |= {"dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
    whole, _, _ = guarded(tmp_path, model=Classifier(dropout=0.3), **changes)
    whole.train()
    steps = whole.state.global_step
    middle = next(path for path in checkpoints(tmp_path) if path.name.endswith("-4"))
    assert steps // 3 < 4 < 2 * steps // 3  # in the middle of the second epoch
    again, _, _ = guarded(tmp_path, model=Classifier(dropout=0.3), **changes)
    again.train(resume_from_checkpoint=str(middle))
    assert logged(again, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-6)
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_two_processes_do_what_one_does(tmp_path):
    call_in_two(one_of_two, tmp_path, imports=["transformers.trainer"])
    alone = outcome_of_run(tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    drawn = torch.tensor(first["drawn"] + second["drawn"])
    expected = torch.bincount(torch.tensor(alone["drawn"]), minlength=SIZE)
    assert torch.equal(torch.bincount(drawn, minlength=SIZE), expected)
    for key in ("loss", "cgd_clean", "cgd_unlearning"):
        values = [[e[key] for e in run["logs"] if key in e] for run in (alone, first)]
        assert len(values[0]) > 10
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-5)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])


# --- what is refused ----------------------------------------------------------------------------


def attached(tmp_path, *, kind=Trainer, data=None, max_steps=-1, **options):
    model, base = Classifier(), Samples()
    settings = arguments(tmp_path, max_steps=max_steps)
    trainer = kind(model, settings, train_dataset=data or base, **options)
    attach(guard_of(model, base), trainer)
    return trainer


class WithLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class WithSampler(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Samples().items)


@pytest.mark.parametrize(
    ("error", "told", "options"),
    [
        (TypeError, "compute_loss of its own.*criterion=", {"kind": WithLoss}),
        (TypeError, "_get_train_sampler of its own.*remove it", {"kind": WithSampler}),
        (
            TypeError,
            "map-style.*Store the samples",
            {"data": Stream(), "max_steps": 3},
        ),
        (ValueError, "not the one.*Make the guard for", {"data": Samples()}),
        (ValueError, "compute_loss_func.*criterion=", {"compute_loss_func": lambda o, y, **n: o}),
    ],
)
def test_what_would_not_be_guarded_is_refused(tmp_path, error, told, options):
    with pytest.raises(error, match=told):
        attached(tmp_path, **options)


def test_label_smoothing_has_one_place(tmp_path):
    model, data = vision_transformer(), Samples()
    settings = arguments(tmp_path, label_smoothing_factor=0.1)
    trainer = Trainer(model, settings, train_dataset=data)
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 has no effect"):
        attach(guard_of(model, data), trainer, criterion=nn.CrossEntropyLoss())


def test_a_guarded_trainer_is_not_guarded_twice(tmp_path):
    trainer, callback, _ = guarded(tmp_path)
    with pytest.raises(ValueError, match="guarded already"):
        attach(callback.guard, trainer)


def mixed_up(samples):
    mix = v2.MixUp(num_classes=3)
    batch = torch.utils.data.default_collate(samples)
    images, labels = mix(batch["pixel_values"], batch["labels"])
    return {"pixel_values": images, "labels": labels}


def blended_in_pairs(samples):
    batch = torch.utils.data.default_collate(samples)
    images = 0.5 * (batch["pixel_values"] + batch["pixel_values"].flip(0))
    return {"pixel_values": images, "labels": 0.5 * batch["labels"] + 0.5 * batch["labels"].flip(0)}


@pytest.mark.parametrize(
    ("collator", "told"),
    [
        (mixed_up, "turn off mixup and CutMix"),
        (blended_in_pairs, "turn off mixup and CutMix"),
        (lambda samples: {"pixel_values": torch.rand(2, 3, 8, 8)}, "have no 'labels'"),
    ],
)
def test_a_collator_that_loses_the_tags_is_refused_before_training(tmp_path, collator, told):
    trainer = attached(tmp_path, data_collator=collator)
    with pytest.raises(ValueError, match=told):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loader_that_is_not_the_guards_is_refused(tmp_path):
    class OwnLoader(Trainer):
        def get_train_dataloader(self):
            return self.get_eval_dataloader(Samples())

    with pytest.raises(ValueError, match="don't override get_train_dataloader"):
        attached(tmp_path, kind=OwnLoader).train()
    trainer = attached(tmp_path)
    trainer.train_dataset = Samples()
    with pytest.raises(ValueError, match="Don't set train_dataset after attach"):
        trainer.train()


def test_a_tolerance_needs_something_to_watch(tmp_path):
    with pytest.raises(ValueError, match="raise holdout_fraction, which is 0"):
        guarded(tmp_path, quick_config(holdout_fraction=0.0, tolerance=1.0))


def test_pictures_without_a_transform_train_but_are_not_watched(tmp_path, caplog):
    def stacked(samples):
        return collate([with_pixels_of(sample) for sample in samples])

    def with_pixels_of(sample):
        return {"pixel_values": as_tensor(sample["image"]), "label": sample["label"]}

    table, model = table_of_pictures(), Classifier()
    settings = arguments(tmp_path, remove_unused_columns=False)
    trainer = Trainer(model, settings, data_collator=stacked, train_dataset=table)
    guard = guard_of(model, table, suspicious=None)
    assert attach(guard, trainer).stopping is None
    assert "eval_dataset_view=" in caplog.text
    trainer.train()
    assert trainer.state.epoch == 2
    trainer = Trainer(model, settings, data_collator=stacked, train_dataset=table)
    with pytest.raises(TypeError, match="eval_dataset_view="):
        attach(guard, trainer, tolerance=1.0)


def test_copies_of_the_count_for_data_parallel_are_undone(tmp_path):
    # Not to be had on a CPU: the Trainer hands over a column, one row a GPU, and multiplies.
    _, callback, _ = guarded(tmp_path)
    batch = collate(callback.guard.dataset.__getitems__(range(8)), key="labels")
    outputs = Classifier()(batch["pixel_values"])
    alone, parallel = TrainerLoss(callback.guard.loss()), TrainerLoss(callback.guard.loss())
    one = alone(outputs, batch["labels"], torch.tensor(8))
    copied = parallel(outputs, batch["labels"], torch.tensor([[8], [8]]))
    torch.testing.assert_close(copied * 2, one)
    torch.testing.assert_close(parallel.take_sums() * 2, alone.take_sums())


def test_without_transformers_the_install_command_is_told(monkeypatch):
    told = told_without(monkeypatch, ["transformers"], "cgd_wrap.adapters.transformers")
    assert "pip install 'cgd-wrap[transformers]'" in told
