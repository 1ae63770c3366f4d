"""Whether a model knows the classes yet."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from tiny_data import NAMES, Items, TintReader, as_tensor, pictures, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.config.settings import FROM_SCRATCH, REPAIRED
from cgd_wrap.models.class_knowledge import class_knowledge, measured_class_knowledge
from cgd_wrap.processes import Runtime

LABELS = torch.arange(40) % 4


class Tinted(nn.Module):
    """Knows the tiny data's classes: the strongest channel. Takes floats of one size only."""

    def __init__(self, knows: float = 1.0) -> None:
        super().__init__()
        self.read = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.read.weight).data.mul_(knows)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_floating_point() or images.shape[1:] != (3, 8, 8):
            raise ValueError("what fixed models raise")
        self.seen += len(images)
        return self.read(images.mean(dim=(2, 3)))


def guard_of(model: nn.Module, dataset=None, *, raw=None, **changes) -> CGDGuard:
    quick = {"suspicious_network": "copy", "suspicious_epochs": 1, "suspicious_batch_size": 20}
    config = CGDConfig(batch_size=32, **quick, **changes)
    return CGDGuard(
        model, tensors() if dataset is None else dataset, NAMES, clip=TintReader(), config=config,
        clip_dataset=raw, progress=False,
    ).scan()  # fmt: skip


def numbers_of(guard: CGDGuard) -> dict[str, float]:
    exposure, config = guard.epoch_indices().exposure, guard.loss().config
    assert exposure is not None
    assert exposure.early == config.early_exposure
    return {name: getattr(config, name) for name in REPAIRED}


# --- the measure --------------------------------------------------------------------------------


def test_skill_runs_from_a_guess_to_all_right():
    assert class_knowledge(LABELS, LABELS) == pytest.approx(1)
    for guess in range(4):
        assert class_knowledge(torch.full_like(LABELS, guess), LABELS) == pytest.approx(0)
    half = torch.where(torch.arange(40) < 20, LABELS, 3 - LABELS)
    assert class_knowledge(half, LABELS) == pytest.approx((0.5 - 0.25) / 0.75)


def test_a_large_class_counts_no_more_than_a_small_one():
    labels = torch.tensor([0] * 96 + [1] * 2 + [2] * 2)
    assert class_knowledge(torch.zeros_like(labels), labels) == pytest.approx(0)


def test_classes_that_do_not_occur_count_for_nothing():
    assert class_knowledge(torch.tensor([5, 7]), torch.tensor([5, 7])) == pytest.approx(1)
    assert class_knowledge(torch.tensor([5, 5]), torch.tensor([5, 7])) == pytest.approx(0)
    assert class_knowledge(torch.tensor([5, 5]), torch.tensor([5, 5])) == pytest.approx(1)


def test_it_is_measured_on_clean_samples_alone():
    images = torch.stack([image for image, _ in tensors()])
    labels = torch.tensor([label for _, label in tensors()])
    clean = torch.arange(len(labels)) % 10 > 0  # every tenth is mislabelled
    measure = partial(
        measured_class_knowledge, Tinted(), images, None, (3, 8, 8),
        runtime=Runtime(torch.device("cpu")), seed=0, progress=False,
    )  # fmt: skip
    assert measure(labels, clean) > 0.95
    assert measure((labels + clean.long()) % 3, ~clean) == measure(labels, ~clean) < 0.5
    assert measure(labels, torch.zeros_like(clean)) == 0


# --- what follows from it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "numbers", "said"),
    [
        (tiny_net(), FROM_SCRATCH, "trained from scratch"),
        (Tinted(), REPAIRED, "repaired"),
    ],
)
def test_the_numbers_depend_on_what_the_model_knows(model, numbers, said, caplog):
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    with caplog.at_level(logging.INFO, logger="cgd_wrap"):
        guard = guard_of(model)
        assert numbers_of(guard) == numbers
    assert caplog.text.count(said) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes


def test_the_scan_decides_so_that_all_numbers_of_a_run_agree(tmp_path):
    guard = guard_of(model := Tinted())
    seen = model.seen
    model.read.weight.data.zero_()
    guard.protect(DataLoader(guard.base, batch_size=8))
    guard.config = guard.config.replace(corner_power=2.0)
    assert numbers_of(guard) == REPAIRED
    assert model.seen == seen

    guard.save(tmp_path)
    loaded = CGDGuard.load(tmp_path, model, guard.base, class_names=NAMES)
    assert loaded.config.depends_on_model
    assert numbers_of(loaded) == REPAIRED
    assert numbers_of(guard.scan()) == FROM_SCRATCH


def test_a_model_is_left_alone_where_nothing_depends_on_it():
    guard = guard_of(model := Tinted(knows=0.0), **REPAIRED)
    assert model.seen <= 4  # two to try the outputs, and two to describe what it computes
    assert guard.result.class_knowledge is None
    guard.config = CGDConfig()
    assert numbers_of(guard) == REPAIRED


def test_images_that_only_the_collate_function_turns_into_tensors_are_read_for_it():
    assert numbers_of(guard_of(Tinted(), Items(pictures()))) == REPAIRED


@pytest.mark.parametrize(
    "changed",
    [
        lambda image, index: as_tensor(image.resize((8 + index % 2, 8))),
        lambda image, _: torch.from_numpy(np.array(image)),
        lambda image, _: (255 * as_tensor(image)).byte(),
    ],
    ids=["several sizes", "channels last", "bytes"],
)
def test_images_that_do_not_fit_are_read_raw_for_it(changed):
    pairs = [(changed(image, index), label) for index, (image, label) in enumerate(pictures())]
    guard = guard_of(Tinted(), Items(pairs), raw=Items(pictures()))
    assert numbers_of(guard) == REPAIRED


def test_a_model_in_half_precision_is_measured_in_it():
    assert numbers_of(guard_of(Tinted().to(torch.bfloat16))) == REPAIRED


def test_a_run_from_scratch_has_its_exposures_in_the_second_half():
    reads = []

    class Counted(Items):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    dataset = Counted(tensors())
    guard = guard_of(tiny_net(), dataset, holdout_fraction=0.0)
    plain = DataLoader(dataset, batch_size=8)
    for epochs, exposed in ((4, 2), (None, 4)):
        loader, _ = guard.protect(plain, epochs=epochs)
        for epoch in range(4):
            reads.clear()
            list(loader)
            assert (len(reads) > len(guard.epoch_indices())) is (epoch >= exposed)
