from __future__ import annotations

import copy
import json
import logging
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import (
    NAMES,
    SIZE,
    Items,
    TintReader,
    as_tensor,
    pictures,
    quick_config,
    stack,
    tensors,
    tiny_net,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

import cgd_wrap
from cgd_wrap import CGDGuard
from cgd_wrap.errors import CacheMismatchError, CGDError, DatasetError
from cgd_wrap.split.estimate import PoisonEstimate, SuspectedClass
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.exposure import Draw, unpack
from cgd_wrap.train.tags import TAG, SampleTable

TRIGGERED = torch.arange(SIZE) % 10 == 0
MISLABELLED = TRIGGERED & (torch.arange(SIZE) % 3 > 0)


def guard_of(dataset, names=NAMES, *, clip=None, model=None, config=None, **options) -> CGDGuard:
    return CGDGuard(
        model or tiny_net(), dataset, names, clip=clip or TintReader(),
        config=config or quick_config(), progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    """A guard whose scan is done."""
    return guard_of(tensors()).scan()


@pytest.fixture
def folder_of_images(tmp_path) -> ImageFolder:
    names = dict(enumerate(NAMES))
    for index, (image, label) in enumerate(pictures()):
        (tmp_path / names[label]).mkdir(exist_ok=True)
        image.save(tmp_path / names[label] / f"{index:03d}.png")
    return ImageFolder(tmp_path, transform=as_tensor)


def hugging_face() -> datasets.Dataset:
    images, labels = zip(*pictures(), strict=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    table.set_transform(lambda b: {**b, "image": [as_tensor(x.convert("RGB")) for x in b["image"]]})
    return table


# --- end to end ---------------------------------------------------------------------------------


def test_mislabelled_samples_are_found(guard):
    split = guard.split
    assert not split.clean[MISLABELLED].any()
    assert split.triggered[MISLABELLED].float().mean() > 0.8
    assert split.counts()["unreadable"] == 0
    assert guard.result.agreement > 0.8
    assert torch.equal(guard.targets[split.clean].unique(), torch.arange(3))


@pytest.mark.parametrize("kind", ["ImageFolder", "datasets", "tensors", "pictures"])
def test_two_lines_guard_a_training_loop(kind, request):
    if kind == "ImageFolder":
        dataset, names = request.getfixturevalue("folder_of_images"), None
    else:
        dataset = {"datasets": hugging_face, "tensors": tensors, "pictures": pictures}[kind]()
        names = None if kind == "datasets" else NAMES
    image, label = ("image", "label") if kind == "datasets" else (0, 1)
    model = tiny_net()
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(dataset, 16, shuffle=True, collate_fn=stack if kind == "pictures" else None)

    guard = guard_of(dataset, names, model=model).scan()
    loader, criterion = guard.protect(loader, criterion)

    assert guard.class_names == (sorted(NAMES) if kind == "ImageFolder" else NAMES)
    epochs, right = [], 0
    for _ in range(6):
        losses = []
        for batch in loader:
            outputs = model(batch[image])
            loss = criterion(outputs, batch[label])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(criterion.last_terms.clean)
            right += int((outputs.argmax(dim=1) == guard.labels(batch[label])).sum())
        epochs.append(torch.stack(losses).mean())
    assert epochs[-1] < epochs[0]
    assert criterion.untagged_batches == 0
    assert right > 6 * len(loader.sampler) / 3  # better than chance: the labels are decoded


@pytest.mark.parametrize(
    ("agreement", "rate", "trust"),
    [(0.99, 0.0, 1.0), (0.8, 0.0, 1.0), (0.7, 0.0, 0.5), (0.6, 0.0, 0.0), (0.1, 0.0, 0.0),
     (0.56, 0.2, 0.5), (0.6, 1.0, 1.0)],
)  # fmt: skip
def test_a_clip_teaches_as_far_as_it_agrees(agreement, rate, trust, guard):
    other, result = copy.copy(guard), guard.result
    assert result.teacher.shape[1] == 3
    figures = replace(result.teachers, agreement=(agreement,))
    other._result = replace(result, teachers=figures, poison_estimate=PoisonEstimate(rate, ()))
    assert other.result.guidance_share == pytest.approx(trust, abs=1e-9)
    expected = other.config.guidance_weight * trust
    assert other.loss().config.guidance_weight == pytest.approx(expected, abs=1e-9)
    other.config = other.config.replace(guidance_by_agreement=False)
    assert other.loss().config == other.config


@pytest.mark.parametrize("by_agreement", [True, False])
def test_fit_takes_no_guidance_from_a_clip_that_disagrees(by_agreement, guard):
    other, result = copy.copy(guard), guard.result
    other.model = copy.deepcopy(guard.model)
    other._result = replace(result, teachers=replace(result.teachers, agreement=(0.1,)))
    [record] = other.fit(epochs=1, guidance_by_agreement=by_agreement)
    assert (record.guidance == 0) is by_agreement


class Counted(Items):
    """Counts how often a sample is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("changes", "exposed"), [({}, 2), ({"exposure_epochs": 3}, 3), ({"exposure_rate": 0.0}, 0)]
)
def test_the_last_epochs_of_fit_can_be_without_exposures(changes, exposed):
    dataset, reads = Counted(tensors()), []
    config = quick_config(holdout_fraction=0.0, late_exposure=0.0)
    guard = guard_of(dataset, config=config).scan()
    each = len(guard.epoch_indices())

    def count(*_) -> None:
        reads.append(dataset.reads)
        dataset.reads = 0

    dataset.reads = 0
    guard.fit(epochs=4, on_epoch=count, **changes)
    assert [read > each for read in reads] == [epoch < exposed for epoch in range(4)]


@pytest.mark.parametrize(("epochs", "exposed"), [(None, 3), (4, 2), (3, 2)])
def test_a_loop_that_says_how_long_it_is_has_its_exposures_in_the_first_half(epochs, exposed):
    dataset = Counted(tensors())
    config = quick_config(holdout_fraction=0.0, late_exposure=0.0)
    guard = guard_of(dataset, config=config).scan()
    loader, _ = guard.protect(DataLoader(dataset, batch_size=8), epochs=epochs)
    reads = []
    for _ in range(3):
        dataset.reads = 0
        list(loader)
        reads.append(dataset.reads)
    assert [read > len(guard.epoch_indices()) for read in reads] == [i < exposed for i in range(3)]


@pytest.mark.parametrize(("tone", "kinds"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_tone_exposure_says_how_many_exposures_are_of_the_tone_alone(tone, kinds):
    config = quick_config(holdout_fraction=0.0, tone_exposure=tone)
    guard = guard_of(tensors(), config=config).scan()
    assert {draw.tone for draw in guard.sampler() if isinstance(draw, Draw)} == kinds


def test_fit_honours_changes_of_what_the_table_is_made_with(guard, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cgd_wrap.train.fit.fit",
        lambda model, loader, loss, *rest, **options: seen.append(loss) or [],
    )
    for power in (2.0, 8.0):
        guard.fit(corner_power=power)
    gentle, steep = (loss.table.tensors["triggered_weight"] for loss in seen)
    assert bool((steep < gentle).any())


def test_guidance_doubts_a_label_that_clip_denies_by_its_probability_of_being_poisoned(guard):
    triggered, config = guard.split.triggered, guard.config.replace(corner_power=8.0)
    given, rows = guard.targets[triggered], torch.arange(int(triggered.sum()))
    denied = rows % 2 == 0
    teacher = torch.zeros(len(rows), 3)
    teacher[rows, given] = torch.where(denied, -20.0, 20.0)
    tables = [
        SampleTable.for_result(
            replace(guard.result, teacher=teacher, poison_probability=torch.full((SIZE,), chance)),
            config,
        ).tensors
        for chance in (0.0, 0.9)
    ]  # fmt: skip
    corner, weight = (table["guidance_weight"][triggered] for table in tables)
    assert torch.equal(corner, tables[0]["triggered_weight"][triggered])
    assert torch.equal(tables[0]["triggered_weight"], tables[1]["triggered_weight"])
    assert bool((corner[denied] < 0.9).any())
    torch.testing.assert_close(weight[denied], corner[denied].clamp(min=0.9))
    torch.testing.assert_close(weight[~denied], corner[~denied])
    belief = (tables[1]["teacher"] - tables[0]["teacher"])[rows, given]
    assert torch.equal(belief < 0, denied & (corner < 0.9))


def test_poison_that_was_learned_slowly_is_unlearned_by_its_probability(guard):
    triggered, config = guard.split.triggered, guard.config.replace(corner_power=8.0)
    given, rows = guard.targets[triggered], torch.arange(int(triggered.sum()))
    suspect = int(given.mode().values)
    teacher = torch.zeros(len(rows), 3)
    teacher[rows, given] = -20.0
    fast, slow = (
        SampleTable.for_result(
            replace(
                guard.result, teacher=teacher, poison_probability=torch.full((SIZE,), 0.9),
                poison_estimate=PoisonEstimate(0.9, (SuspectedClass(suspect, 1.0, 0.9, only),)),
            ),
            config,
        ).tensors
        for only in (False, True)
    )  # fmt: skip
    before, after = (table["triggered_weight"][triggered] for table in (fast, slow))
    assert bool((before[given == suspect] < 0.9).any())
    torch.testing.assert_close(after[given == suspect], before[given == suspect].clamp(min=0.9))
    assert torch.equal(after[given != suspect], before[given != suspect])
    assert torch.equal(slow["guidance_weight"], fast["guidance_weight"])


@pytest.mark.parametrize(
    ("samples_of_it", "times"), [(0.0, 1), (1.0, 1), (2.4, 2), (2.6, 3), (20.0, 5)]
)
def test_rare_poison_is_drawn_several_times(samples_of_it, times, guard):
    poison = guard.split.triggered.nonzero().squeeze(1)[:4]
    probability = torch.zeros(SIZE)
    probability[poison] = 0.6
    probability[guard.split.clean] = 0.6  # no less clean for it
    share = samples_of_it * len(poison) / SIZE
    config = guard.config.replace(poison_oversampling=share).decided(trained=True)
    result = replace(guard.result, poison_probability=probability)
    epochs = EpochIndices.for_result(result, config)
    usual = EpochIndices.for_result(guard.result, config)
    count, before = (torch.bincount(each.of(0), minlength=SIZE) for each in (epochs, usual))
    assert set(count[poison].tolist()) == {times}
    count[poison] = 1
    assert torch.equal(count, before)
    assert len(epochs) == len(epochs.of(0)) == len(usual) + (times - 1) * len(poison)


def test_a_given_suspicious_model_is_used_as_it_is(tmp_path):
    victim = tiny_net(seed=3)
    torch.save(victim.state_dict(), tmp_path / "victim.pt")
    by_model = guard_of(tensors(), suspicious=victim).scan()
    by_path = guard_of(tensors(), suspicious=tmp_path / "victim.pt").scan()
    images = torch.stack([image for image, _ in tensors()])
    with torch.no_grad():
        expected = victim.eval()(images)
    for found in (by_model, by_path):
        stored = torch.cat([logits for _, logits, _ in found.logits[1].units()])
        torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-5)


def test_the_users_model_and_dataset_are_left_alone(folder_of_images):
    model = tiny_net().train()
    model[1].eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    guard_of(folder_of_images, None, model=model).scan()
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(tensor, weights[n]) for n, tensor in model.state_dict().items())
    assert folder_of_images.transform is as_tensor
    assert folder_of_images[0][1] == 0


class DrawsAlong(Dataset):
    """Draws from every random stream at each sample, to no effect on it."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        torch.rand(1), np.random.rand(), random.random()
        return self.items[index]


@pytest.mark.usefixtures("unchecked")
def test_random_streams_are_left_alone(tmp_path):
    dataset = DrawsAlong(tensors())
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    guard = guard_of(dataset).scan()
    guard.stopping().step(guard.model)
    guard.report(tmp_path)
    found = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(states[0], found[0])
    np.testing.assert_array_equal(states[1][1], found[1][1])
    assert states[1][2] == found[1][2]
    assert states[2] == found[2]


def test_scans_are_reproducible(guard):
    torch.manual_seed(11)
    again = guard_of(tensors()).scan()
    for name, column in vars(guard.entropy_map).items():
        assert torch.equal(column, getattr(again.entropy_map, name))
    other = guard_of(tensors(), config=quick_config(seed=1)).scan()
    assert not torch.equal(other.entropy_map.suspicious_nll, guard.entropy_map.suspicious_nll)


# --- cache --------------------------------------------------------------------------------------


class Countdown(TintReader):
    """Scores so many images, and then fails."""

    left = 0

    def logits(self, images: Tensor) -> Tensor:
        Countdown.left -= len(images)
        assert Countdown.left >= 0, "a finished scan asked the model"
        return super().logits(images)


class OnceTrained(nn.Module):
    """Fails in training mode when told to; a probe in evaluation mode may run."""

    spent = threading.Event()  # whether it is set is no setting of the model

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()

    def forward(self, images: Tensor) -> Tensor:
        assert not OnceTrained.spent.is_set() or len(images) == 2, "a finished scan ran the model"
        return self.net(images)


def test_a_finished_scan_is_read_without_the_models(tmp_path):
    Countdown.left = -(-SIZE // 16) * 16  # batches are filled up
    options = {"cache_dir": tmp_path, "model": OnceTrained()}
    first = guard_of(tensors(), clip=Countdown(), **options).scan()
    OnceTrained.spent.set()
    started = time.process_time()
    second = guard_of(tensors(), clip=Countdown(), **options).scan()
    assert time.process_time() - started < 1
    for name, column in vars(first.entropy_map).items():
        assert torch.equal(column, getattr(second.entropy_map, name))
    assert first.split.names() == second.split.names()


def test_a_cache_of_other_data_is_refused_and_can_be_replaced(tmp_path):
    guard_of(tensors(), cache_dir=tmp_path).scan()
    changed = tensors()
    changed[7] = (changed[7][0].flip(0), changed[7][1])
    with pytest.raises(CacheMismatchError, match="dataset") as caught:
        guard_of(changed, cache_dir=tmp_path).scan()
    assert set(caught.value.fields) == {"dataset"}
    guard = guard_of(changed, cache_dir=tmp_path).scan(overwrite=True)
    assert torch.equal(guard.entropy_map.clip_nll, guard_of(changed).scan().entropy_map.clip_nll)


def test_without_a_cache_nothing_stays_on_disk(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    guard = guard_of(tensors()).scan()
    assert len(list(tmp_path.iterdir())) == 1
    guard.scan()
    assert len(list(tmp_path.iterdir())) == 1
    guard.export(tmp_path / "export")
    del guard
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


# --- save and load ------------------------------------------------------------------------------


def test_a_saved_guard_goes_on_where_it_was(guard, tmp_path):
    guard.save(tmp_path)
    loaded = CGDGuard.load(tmp_path, tiny_net(), tensors(), class_names=NAMES, progress=False)
    assert loaded.config == guard.config
    for name, column in vars(guard.entropy_map).items():
        assert torch.equal(column, getattr(loaded.entropy_map, name))
    assert loaded.split.names() == guard.split.names()
    assert list(loaded.sampler()) == list(guard.sampler())
    outputs, tags = torch.randn(SIZE, 3, requires_grad=True), torch.arange(SIZE) + TAG
    assert torch.equal(loaded.loss()(outputs, tags), guard.loss()(outputs, tags))
    with pytest.raises(CGDError, match="kept with the scan"):
        loaded.export(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda data, names: (data[:-1], names), "labels"),
        (lambda data, names: ([*data[:-1], (data[-1][0] * 0, data[-1][1])], names), "dataset"),
        (lambda data, names: (data, ["crimson", "lime", "navy"]), "class_names"),
    ],
)
def test_a_saved_guard_of_something_else_is_refused(change, field, guard, tmp_path):
    guard.save(tmp_path)
    data, names = change(tensors(), NAMES)
    with pytest.raises(CacheMismatchError, match=field):
        CGDGuard.load(tmp_path, tiny_net(), data, class_names=names)


def test_thresholds_other_than_the_saved_ones_are_refused(guard, tmp_path):
    guard.save(tmp_path)
    config = quick_config(sigma_clean=0.3)
    with pytest.raises(CacheMismatchError, match="sigma_clean"):
        CGDGuard.load(tmp_path, tiny_net(), tensors(), class_names=NAMES, config=config)


def test_a_folder_without_a_guard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved guard in .*guard\.safetensors"):
        CGDGuard.load(tmp_path, tiny_net(), tensors(), class_names=NAMES)


# --- what training needs ------------------------------------------------------------------------


def test_labels_are_decoded(guard):
    targets = torch.tensor([TAG + 1, TAG + 10, 2])
    assert guard.labels(targets).tolist() == [1, 0, 2]


def test_every_part_of_the_epoch_is_there_and_nothing_held_out(guard):
    served = set(guard.sampler())
    assert served == {int(label) - TAG for _, label in guard.balanced_view}
    held_out = set(guard.result.held_out.nonzero().squeeze(1).tolist())
    assert held_out
    assert held_out <= set(guard.split.clean.nonzero().squeeze(1).tolist())
    assert served == set(range(SIZE)) - held_out


def test_mixed_samples_can_be_left_out():
    guard = guard_of(tensors(), config=quick_config(keep_mixed=False)).scan()
    served = torch.tensor(list(guard.sampler()))
    assert guard.split.mixed.any()
    assert not guard.split.mixed[served].any()


def test_the_balanced_view_is_one(guard):
    view = guard.balanced_view
    first = view.indices.clone()
    guard.balanced_view.set_epoch(1)
    assert guard.balanced_view is view
    assert not torch.equal(view.indices, first)
    guard.balanced_view.set_epoch(0)


def test_sampler_and_view_are_told_the_number_of_epochs():
    # A fresh model is exposed in the second half only: where that begins, they must be told.
    config = quick_config(exposure_rate=0.5, early_exposure=0.0, holdout_fraction=0.0)
    guard = guard_of(tensors(), config=config).scan()
    sampler, view = guard.sampler(), guard.balanced_view
    expected = guard.epoch_indices().in_run_of(2)

    def exposed(drawn):
        return sum(isinstance(index, Draw) for index in drawn)

    assert exposed(sampler) == 0
    view.set_epoch(1)
    sampler.set_run(2)  # it is at epoch 1 by its first pass
    view.set_run(2)
    assert torch.equal(view.indices, expected.shuffled(1))
    assert exposed(sampler) == exposed(unpack(value) for value in view.indices.tolist()) > 0


def test_stopping_watches_the_held_out_part(guard):
    stopping = guard.stopping(3.0)
    assert stopping.rule.tolerance == 3.0
    assert guard.config.tolerance is None
    assert guard.stopping().rule.tolerance == float("inf")
    assert len(stopping.loader.dataset) == int(guard.result.held_out.sum())
    stopping.step(guard.model)
    with pytest.raises(ValueError, match="tolerance"):
        guard.stopping(0)
    nothing_held_out = guard_of(tensors(), config=quick_config(holdout_fraction=0.0)).scan()
    assert nothing_held_out.stopping() is None


# --- misuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda g: g.loss(), lambda g: g.split, lambda g: g.sampler(), lambda g: g.balanced_view,
        lambda g: g.labels(torch.tensor([0])), lambda g: g.stopping(), lambda g: g.fit(),
        lambda g: g.protect(DataLoader(g.base, 4)), lambda g: g.save("/nonexistent"),
        lambda g: g.logits, lambda g: g.report("/nonexistent"), lambda g: g.export("/tmp/t"),
    ],
)  # fmt: skip
def test_before_the_scan_it_says_so(use):
    with pytest.raises(CGDError, match=r"scan\(\)"):
        use(guard_of(tensors()))


class Contrary(TintReader):
    """Never sees blue."""

    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images) - torch.tensor([0.0, 0.0, 100.0])


def test_a_class_without_clean_samples_is_an_error_that_can_be_allowed(caplog):
    config = quick_config(suspicious_epochs=5, sigma_clean=0.5, sigma_slow=None, corner_cut=None)
    with pytest.raises(DatasetError, match=r"\['blue'\].*allow_missing_classes=True"):
        guard_of(tensors(), clip=Contrary(), config=config).scan()
    with caplog.at_level(logging.WARNING):
        guard = guard_of(
            tensors(), clip=Contrary(), config=config.replace(allow_missing_classes=True)
        ).scan()
    assert "['blue']" in caplog.text
    assert 2 not in guard.targets[guard.split.clean]
    loss = guard.loss()(torch.randn(SIZE, 3, requires_grad=True), torch.arange(SIZE) + TAG)
    assert loss.isfinite()


class Confused(TintReader):
    """Gives each class' score to the next."""

    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images).roll(1, dims=1)


def test_a_zero_shot_model_that_contradicts_the_labels_is_warned_of(caplog):
    config = quick_config(allow_missing_classes=True)
    with caplog.at_level(logging.WARNING):
        guard = guard_of(tensors(), clip=Confused(), config=config).scan()
    assert guard.result.agreement < 0.2
    assert "not to be trusted" in caplog.text


def test_another_number_of_outputs_is_refused_before_the_scan():
    with pytest.raises(ValueError, match="the model has 4 outputs, but there are 3 classes"):
        guard_of(tensors(), model=tiny_net(classes=4)).scan()


@pytest.mark.parametrize("name", ["clip_dataset", "eval_dataset_view"])
def test_a_view_of_another_length_is_refused(name):
    with pytest.raises(DatasetError, match=f"{name} has {SIZE - 1} samples and the dataset {SIZE}"):
        guard_of(tensors(), **{name: Items(tensors()[:-1])})


def test_names_that_nobody_knows_must_be_passed():
    with pytest.raises(DatasetError, match="pass class_names="):
        guard_of(tensors(), None)


# --- what stays ---------------------------------------------------------------------------------


def test_exported_files_are_those_of_the_reference(guard, tmp_path):
    files = guard.export(tmp_path / "new" / "export")
    indices = json.loads(files["clean_indices"].read_text())
    counts = torch.bincount(guard.targets[indices])
    assert counts.min() == counts.max()
    assert set(indices) == set(guard.split.clean.nonzero().squeeze(1).tolist())
    scores = json.loads(files["entropy_score"].read_text())
    assert list(scores) == [str(index) for index in range(SIZE)]
    assert scores["5"] == [
        float(guard.entropy_map.clip_rank[5]), float(guard.entropy_map.suspicious_rank[5]), False,
    ]  # fmt: skip
    logits = load_file(files["logits"])
    assert logits["clip_logits"].shape == logits["suspicious_logits"].shape == (SIZE, 3)
    assert torch.equal(logits["labels"], guard.targets)


def test_the_report_is_written(guard, folder_of_images, tmp_path):
    files = guard.report(tmp_path / "report", poisoned=TRIGGERED)
    assert all(path.stat().st_size > 0 for path in files.values())
    assert "detection" in json.loads(files["summary"].read_text())["figures"]
    of_files = guard_of(folder_of_images, None).scan().report(tmp_path / "of files")
    assert "000.png" in of_files["samples"].read_text()


# --- the package --------------------------------------------------------------------------------


def test_public_names():
    assert cgd_wrap.__all__ == [
        "BadSampleError", "BalancedSampler", "CGDConfig", "CGDError", "CGDGuard", "CGDLoss",
        "CacheMismatchError", "ClipLoadError", "DatasetError", "EntropyMap", "MissingExtraError",
        "ScanIncompleteError", "Split", "StoredFileError", "TrainingDivergedError", "Verdict",
        "functional",
    ]  # fmt: skip
    assert all(hasattr(cgd_wrap, name) for name in cgd_wrap.__all__)


def test_importing_it_imports_no_host():
    foreign = (
        "transformers", "timm", "lightning", "pytorch_lightning", "accelerate", "datasets",
        "torchvision", "matplotlib", "jinja2", "open_clip", "scipy", "pandas",
    )  # fmt: skip
    ours = "cgd_wrap, cgd_wrap.data.class_names, cgd_wrap.data.fingerprint, cgd_wrap.data.labels"
    code = f"import sys, {ours}; print([m for m in {foreign} if m in sys.modules])"
    root = Path(cgd_wrap.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True
    )
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
