"""An interrupted ``guard.fit`` goes on after its last epoch, as if it had never stopped."""

from __future__ import annotations

import random
import resource
import shutil
from functools import cache
from pathlib import Path

import interrupted_fit
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from launching import run_python
from tiny_data import NAMES, SIZE, TintReader, quick_config, tensors, tiny_net
from torch import nn

from cgd_wrap import CGDGuard
from cgd_wrap.errors import CacheMismatchError, StoredFileError

EPOCHS = 5
pytestmark = pytest.mark.usefixtures("unchecked")  # beartype draws from Python's stream


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Augmented:
    """Samples whose images are changed by draws from every global random stream."""

    classes = NAMES

    def __init__(self, size: int = SIZE) -> None:
        self.samples, self.still = tensors(size), True

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        image, label = self.samples[index]
        if not self.still:
            image = image + 0.1 * torch.rand(1) + 0.1 * random.random() + 0.1 * np.random.rand()
        return image, label


def dropping_net(seed: int = 0) -> nn.Sequential:
    """With dropout, which draws from torch's stream, and BatchNorm, which has buffers."""
    net = tiny_net(seed)
    net.insert(5, nn.Dropout(0.3))
    return net


def guard_of(cache: Path | None, *, model: nn.Module | None = None, size: int = SIZE, **changes):
    config = quick_config(**({"epochs": EPOCHS, "batch_size": 24, "exposure_rate": 0.3} | changes))
    data = Augmented(size)
    guard = CGDGuard(
        model or dropping_net(), data, clip=TintReader(), cache_dir=cache, config=config,
        progress=False, suspicious=tiny_net(3),
    ).scan()  # fmt: skip
    data.still = False
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    return guard


class KilledError(Exception):
    pass


def killed_after(
    epoch: int, guard: CGDGuard, error: type[BaseException] = KilledError, **options
) -> None:
    """Fit until an epoch is trained on, and die before the end of the next one."""
    left = [epoch]

    def die(module, inputs):
        if module.training and left[0] == 0:
            raise error

    def count(record, model):
        left[0] -= 1

    hook = guard.model.register_forward_pre_hook(die)
    with pytest.raises(error):
        guard.fit(on_epoch=count, **options)
    hook.remove()


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


# Not fixtures of the module: those would be made with the checks on, whose draws would count.


@cache
def whole():
    """The model of a fit that nothing interrupts, and the fit's history."""
    guard = guard_of(None)
    return guard.model, guard.fit()


@cache
def cut_short(folder: Path) -> Path:
    """The cache, in this folder, of a fit that was killed in its third epoch; to be copied."""
    killed_after(2, guard_of(folder))
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


def without_seconds(history):
    return [record.as_dict() | {"seconds": 0} for record in history]


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (0, {"holdout_fraction": 0.0, "max_batches_per_epoch": 2, "max_gradient_norm": None}),
        (1, {}),
    ],
)
def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path, changes, workers):
    """FAULTS row 61, to the last bit."""
    whole = guard_of(tmp_path / "whole", **changes)
    whole.num_workers = workers
    expected = whole.fit()
    first = guard_of(tmp_path / "cut", **changes)
    first.num_workers = workers
    killed_after(2, first)
    assert (tmp_path / "cut" / "fit" / "checkpoint.safetensors").is_file()
    again = guard_of(tmp_path / "cut", **changes)
    again.num_workers = workers
    seen = []
    history = again.fit(on_epoch=lambda record, model: seen.append(record.epoch))
    assert seen == [3, 4, 5]
    assert without_seconds(history) == without_seconds(expected)
    assert same(again.model, whole.model)
    assert not (tmp_path / "cut" / "fit").exists()
    assert first.model is not again.model


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_fit_goes_on_in_the_same_process(tmp_path, error, caplog):
    (model, expected), cut = whole(), guard_of(tmp_path)
    killed_after(2, cut, error)
    assert not any(module.training for module in cut.model.modules())
    history = cut.fit()
    assert len(history) == len(expected)
    assert "weights aren't those that the training of" in caplog.text
    torch.testing.assert_close(cut.model.state_dict(), model.state_dict())


def test_the_stopping_rule_goes_on_with_what_it_saw(tmp_path):
    """Its best accuracy is from before the interruption; its accepted weights come back."""
    config = {"holdout_fraction": 0.3, "tolerance": 20.0, "max_gradient_norm": None}
    cut = guard_of(tmp_path, **config)
    killed_after(2, cut)
    again = guard_of(tmp_path, **config)
    accepted = None

    def spoil(module, inputs):
        nonlocal accepted
        if module.training and accepted is None:
            accepted = {n: t.clone() for n, t in module.state_dict().items()}
            with torch.no_grad():
                module[-1].weight.neg_().mul_(50)

    again.model.register_forward_pre_hook(spoil)
    history = again.fit()
    assert len(history) == 3
    assert history[2].held_out_accuracy < history[1].held_out_accuracy - 0.2
    assert all(torch.equal(tensor, accepted[n]) for n, tensor in again.model.state_dict().items())


def test_a_second_fit_is_a_new_training(tmp_path):
    guard = guard_of(tmp_path)
    first, before = guard.fit(), [p.clone() for p in guard.model.parameters()]
    second = guard.fit()
    assert [record.epoch for record in second] == [record.epoch for record in first]
    assert not all(map(torch.equal, before, guard.model.parameters()))


def test_without_a_folder_nothing_is_written_and_a_folder_can_be_given(tmp_path):
    guard = guard_of(None)
    killed_after(1, guard)
    killed_after(1, guard, checkpoint_dir=tmp_path / "own")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["checkpoint.safetensors"]
    assert len(guard.fit(checkpoint_dir=tmp_path / "own")) == EPOCHS
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": 0.01}, "learning_rate: 0.07 -> 0.01"),
        ({"epochs": 7}, "epochs: 5 -> 7"),
        ({"unlearning_weight": 0.5}, "unlearning_weight: 0.2 -> 0.5"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, changes, field):
    """FAULTS row 61: neither taken for this training nor written over."""
    guard = guard_of(tmp_path)
    killed_after(1, guard)
    kept = (tmp_path / "fit" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CacheMismatchError, match=rf"(?s){field}\. .*delete the file"):
        guard.fit(**changes)
    assert (tmp_path / "fit" / "checkpoint.safetensors").read_bytes() == kept
    assert len(guard.fit(resume=False, **changes)) == changes.get("epochs", EPOCHS)


@pytest.mark.parametrize(
    ("other", "field"),
    [({"size": 90}, f"samples: {SIZE} -> 90"), ({"model": tiny_net()}, "architecture: ")],
)
def test_a_checkpoint_of_other_data_or_of_another_model_is_refused(tmp_path, other, field):
    killed_after(1, guard_of(None), checkpoint_dir=tmp_path)
    with pytest.raises(CacheMismatchError, match=field):
        guard_of(None, **other).fit(checkpoint_dir=tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_checkpoint_is_not_used(tmp_path, kept, damage, caplog):
    model, expected = whole()
    shutil.copytree(cut_short(kept), tmp_path / "cut")
    path = tmp_path / "cut" / "fit" / "checkpoint.safetensors"
    payload = bytearray(path.read_bytes())
    if damage == "flipped":
        payload[len(payload) // 2] ^= 16
    path.write_bytes(
        {"cut": payload[:-100], "empty": b"", "other": b"x" * 500}.get(damage, payload)
    )
    again = guard_of(tmp_path / "cut")
    history = again.fit()
    assert "is damaged, and not used" in caplog.text
    assert len(history) == len(expected)
    torch.testing.assert_close(again.model.state_dict(), model.state_dict())


def test_a_checkpoint_that_cannot_be_written_does_not_cost_the_training(tmp_path, caplog):
    """As on a full disk; here, by the largest file that the process may write."""
    guard, (soft, hard) = guard_of(None), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        history = guard.fit(checkpoint_dir=tmp_path / "fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(history) == EPOCHS
    assert "fit goes on without a new checkpoint: [Errno 27]" in caplog.text
    assert not (tmp_path / "fit").exists()


def test_a_folder_that_is_a_link_or_a_file_is_refused_before_any_step(tmp_path):
    guard = guard_of(None)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(Path.home())
    for name, said in (("file", "is a file, but a folder is needed"), ("link", "Remove the link")):
        with pytest.raises(StoredFileError, match=said):
            guard.fit(checkpoint_dir=tmp_path / name)


def test_two_processes_go_on_as_if_they_had_never_stopped(tmp_path):
    """FAULTS rows 53 and 61: the main process writes, all go on; all end where one diverges."""
    printed = run_python(interrupted_fit.__file__, str(tmp_path), processes=2)
    assert printed.count("has passed") == 2
