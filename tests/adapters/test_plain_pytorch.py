"""A loop in plain PyTorch: whatever its DataLoader does, two lines guard it."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from user_loop import train_epoch

from cgd_wrap import CGDGuard
from cgd_wrap.train.tags import is_tagged

SIZE, BATCH = 120, 16
SIDE = 3  # of the white corner that the poisoned tenth of the images has, pixels


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    return guard_of(tensors(SIZE))


def guard_of(dataset, **changes) -> CGDGuard:
    return CGDGuard(
        tiny_net(), dataset, NAMES, clip=TintReader(), config=quick_config(**changes),
        progress=False,
    ).scan()  # fmt: skip


def into_tensors(samples) -> tuple[Tensor, Tensor]:
    """A collate function of the user's: images of half the brightness."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images) / 2, torch.tensor(targets)


def count_threads(worker: int) -> None:
    assert torch.get_num_threads() == 1


def by_tag(sample: tuple[int, Tensor]) -> tuple[int, float]:
    tag, image = sample
    return tag, image.sum().item()


# --- every option of a DataLoader ---------------------------------------------------------------

OPTIONS = {
    "none": {},
    "drop last": {"drop_last": True},
    "workers": {"num_workers": 2, "prefetch_factor": 3, "worker_init_fn": count_threads},
    "persistent workers": {"num_workers": 2, "persistent_workers": True, "timeout": 60},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    "any order": {"num_workers": 2, "in_order": False},
    "pinned memory": {"pin_memory": True},
    "generator": {"generator": torch.Generator().manual_seed(5)},
    "collate": {"collate_fn": into_tensors},
    "batch sampler": {"batch_sampler": (BATCH, False)},
    "batch sampler, drop last": {"batch_sampler": (7, True)},
}
SLOW = {"forkserver": {**OPTIONS["spawn"], "multiprocessing_context": "forkserver"}}
CASES = [*OPTIONS, pytest.param("forkserver", marks=pytest.mark.slow)]


def loader_of(dataset, case: str) -> DataLoader:
    options = dict({**OPTIONS, **SLOW}[case])
    if "batch_sampler" in options:
        size, drop_last = options.pop("batch_sampler")
        return DataLoader(
            dataset, batch_sampler=BatchSampler(RandomSampler(dataset), size, drop_last), **options
        )
    return DataLoader(dataset, BATCH, shuffle=True, **options)


# Without a GPU there is nothing to pin the memory for.
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_with_every_option_each_sample_comes_as_often_as_the_index_map_says(guard, case):
    loader, criterion = guard.protect(loader_of(guard.base, case), nn.CrossEntropyLoss())
    sampler = guard.sampler()
    for _ in range(2):  # persistent workers must see the second epoch's draws, too
        images, targets = (list(part) for part in zip(*loader, strict=True))
        expected = [guard.dataset[index] for index in sampler]
        whole = len(torch.cat(targets))
        if "drop last" in case:
            assert whole == len(expected) // len(targets[0]) * len(targets[0])
        else:
            assert whole == len(expected)
        scale = 0.5 if case == "collate" else 1
        found = list(zip(torch.cat(targets).tolist(), torch.cat(images), strict=True))
        wanted = [(int(tag), image * scale) for image, tag in expected][:whole]
        if case == "any order":
            found, wanted = sorted(found, key=by_tag), sorted(wanted, key=by_tag)
        assert [tag for tag, _ in found] == [tag for tag, _ in wanted]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))
    loss = criterion(torch.randn(len(targets[0]), 3, requires_grad=True), targets[0])
    assert loss.isfinite()
    assert criterion.untagged_batches == 0


def test_the_users_own_loader_still_gives_plain_labels(guard):
    loader = loader_of(guard.base, "none")
    guard.protect(loader)
    labels = torch.cat([targets for _, targets in loader])
    assert sorted(labels.tolist()) == sorted(int(label) for _, label in guard.base)


# --- the loop -----------------------------------------------------------------------------------


def losses_of(loader, criterion, epochs: int = 2) -> list[float]:
    model = tiny_net(4).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return [x for _ in range(epochs) for x in train_epoch(model, loader, criterion, optimizer)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_nothing_triggered_and_nothing_to_balance_losses_are_those_without_a_guard(smoothing):
    right = [(image, index % 3) for index, (image, _) in enumerate(tensors(SIZE))]
    everything_clean = {"sigma_clean": 0.0, "sigma_triggered": 0.0, "sigma_slow": None}
    guard = guard_of(right, **everything_clean, holdout_fraction=0.0, exposure_rate=0.0)
    assert guard.split.clean.all()
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    found = losses_of(*guard.protect(DataLoader(right, BATCH, shuffle=True), criterion))
    order = itertools.chain(guard.sampler(), _epoch(guard, 1))
    epochs = [right[index] for index in order]
    batches = [
        batch
        for start in (0, SIZE)
        for batch in DataLoader(epochs[start : start + SIZE], BATCH, generator=torch.Generator())
    ]
    expected = losses_of(batches, criterion, epochs=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def _epoch(guard: CGDGuard, epoch: int):
    sampler = guard.sampler()
    sampler.set_epoch(epoch)
    return sampler


class Jittered:
    """Adds noise from the global stream to each image, as augmentations do."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        image, label = self.items[index]
        return (image + 0.1 * torch.rand(1)).clamp(0, 1), label


@pytest.mark.usefixtures("unchecked")
def test_the_users_random_stream_is_theirs():
    data = tensors(SIZE)
    guard = CGDGuard(
        tiny_net(), Jittered(data), NAMES, clip=TintReader(), config=quick_config(),
        clip_dataset=data, eval_dataset_view=data, progress=False,
    )  # fmt: skip
    torch.manual_seed(9)
    state = torch.get_rng_state()
    loader, criterion = guard.scan().protect(DataLoader(guard.base, BATCH, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = sum(len(targets) for _, targets in loader)
    torch.manual_seed(9)
    torch.rand(1)
    for _ in range(drawn - 1):
        torch.rand(1)
    expected = torch.get_rng_state()
    torch.manual_seed(9)
    for images, targets in loader:
        criterion(tiny_net()(images), targets)
    assert torch.equal(torch.get_rng_state(), expected)  # one draw for each sample, no more


def test_evaluation_is_untouched(guard):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    _, guarded = guard.protect(DataLoader(guard.base, BATCH), criterion)
    validation = DataLoader(tensors(40), 8)
    model = tiny_net().eval()
    with torch.no_grad():
        for images, labels in validation:
            assert not bool(is_tagged(labels).any())
            assert torch.equal(guarded(model(images), labels), criterion(model(images), labels))
    assert guarded.untagged_batches == 0


# --- the defence --------------------------------------------------------------------------------


def network() -> nn.Module:
    """Sees a small corner better than an average over it does."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 3),
        )  # fmt: skip


def figures(loader, criterion) -> tuple[float, float]:
    """Clean accuracy and attack success rate after training."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(8):
        train_epoch(model, loader, criterion, optimizer)
    unseen = [(x, i % 3) for i, (x, _) in enumerate(tensors(900)) if i >= 600 and i % 10]
    images = torch.stack([image for image, _ in unseen])
    labels = torch.tensor([label for _, label in unseen])
    triggered = images.clone()
    triggered[:, :, :SIDE, :SIDE] = 1
    with torch.no_grad():
        right = model.eval()(images).argmax(dim=1) == labels
        fooled = model(triggered).argmax(dim=1)[labels > 0] == 0
    return float(right.float().mean()), float(fooled.float().mean())


@pytest.mark.slow
def test_a_guarded_loop_does_not_learn_the_backdoor():
    loader = DataLoader(tensors(600), 32, shuffle=True, generator=torch.Generator().manual_seed(0))
    accuracy, success = figures(loader, nn.CrossEntropyLoss())
    assert accuracy > 0.9
    assert success > 0.9
    # The suspicious model is too slow on so little data to tell whom the attack aims at.
    guard = CGDGuard(
        network(),
        loader.dataset,
        NAMES,
        clip=TintReader(),
        config=quick_config(seed=1),
        progress=False,
    ).scan()
    guarded_accuracy, guarded_success = figures(*guard.protect(loader, nn.CrossEntropyLoss()))
    assert guarded_success < 0.1
    assert guarded_accuracy > accuracy - 0.05
