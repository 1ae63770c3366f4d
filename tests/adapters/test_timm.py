"""timm: its loaders, its losses and its tasks, on a real folder of images."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from tiny_data import NAMES, as_tensor, pictures, quick_config, tiny_net
from torch import nn
from user_loop import tags_of, train_epoch

from cgd_wrap import CGDGuard
from cgd_wrap.adapters.timm import class_names, evaluated, protect, refuse_mixing
from cgd_wrap.train.tags import is_tagged

# timm's dataset leaves its files open for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
DATA = {
    "input_size": (3, 8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
    "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip
CPU = torch.device("cpu")


class Tints:
    """Zero-shot: the strongest colour, in the alphabetical order of a folder's classes."""

    def logits(self, images):
        return 20 * images.mean(dim=(2, 3)).flip(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tints")
    for index, (image, label) in enumerate(pictures()):
        (folder / NAMES[label]).mkdir(exist_ok=True)
        image.save(folder / NAMES[label] / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def guard(root) -> CGDGuard:
    dataset = create_dataset("", root=str(root))
    return CGDGuard(
        tiny_net(), dataset, clip=Tints(), config=quick_config(), progress=False,
        eval_dataset_view=evaluated(dataset, DATA),
    ).scan()  # fmt: skip


def loader_of(dataset, **options):
    settings = {
        "batch_size": 16, "is_training": True, "no_aug": True, "num_workers": 0, "device": CPU,
        **{k: v for k, v in DATA.items() if not k.startswith("crop")},
    }  # fmt: skip
    return create_loader(dataset, **(settings | options))


# --- options that lose a label's sample ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixup": 0.8}, r"--mixup 0\.8 blends labels: pass --mixup 0"),
        ({"cutmix": 1.0}, r"--cutmix 1\.0 blends labels: pass --cutmix 0"),
        ({"cutmix_minmax": [0.2, 0.8]}, "leave --cutmix-minmax out"),
        ({"aug_splits": 3}, "AugMix.*pass --aug-splits 0"),
        ({"jsd_loss": True}, "leave --jsd-loss out"),
        ({"bce_loss": True}, "leave --bce-loss out"),
        ({"aug_repeats": 3}, "pass --aug-repeats 0"),
        ({"mixup": 0.1, "cutmix": 0.1}, "--mixup.*--cutmix"),
    ],
)
@pytest.mark.parametrize("kind", [dict, Namespace])
def test_options_under_which_a_label_cannot_name_its_sample_are_refused(options, words, kind):
    with pytest.raises(ValueError, match=words):
        refuse_mixing(kind(**options))


def test_options_that_are_off_are_accepted():
    off = {"mixup": 0.0, "cutmix": 0, "cutmix_minmax": None, "aug_splits": 0, "jsd_loss": False}
    refuse_mixing(off)
    refuse_mixing(Namespace(aug_repeats=0.0, model="resnet18"))


# --- class names and views ----------------------------------------------------------------------


def named(*names):
    return Namespace(classes=list(names))


def test_wordnet_ids_become_words_that_tell_classes_apart():
    # Two cranes, and two maillots of which one has further names.
    ids = ["n01440764", "n02012849", "n03126707", "n03710637", "n03710721"]
    found = class_names(named(*ids))
    assert found[0] == "tench"
    assert len(set(found)) == 5
    assert all(name.startswith("crane: ") for name in found[1:3])
    assert class_names(named("tench", "n01440764")) == ["tench", "n01440764"]
    assert class_names(named("n00000000", "n01440764")) == ["n00000000", "n01440764"]


def test_names_of_a_folder_are_its_subfolders(guard):
    assert class_names(guard.base) == guard.class_names == sorted(NAMES)


def test_the_evaluated_view_is_normalised_and_leaves_the_dataset_alone(root):
    dataset = create_dataset("", root=str(root))
    view = evaluated(dataset, DATA)
    assert dataset.transform is None
    image, label = view[4]
    assert image.shape == (3, 8, 8)
    raw = as_tensor(dataset[4][0])
    mean, std = (torch.tensor(DATA[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(image, (raw - mean) / std, rtol=0, atol=0.02)
    assert label == dataset[4][1]


# --- protect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_prefetcher", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_sample_is_drawn_as_often_as_the_index_map_says(guard, use_prefetcher, num_workers):
    loader = loader_of(guard.base, use_prefetcher=use_prefetcher, num_workers=num_workers)
    found, criterion = protect(guard, loader, LabelSmoothingCrossEntropy(0.1))
    assert type(found) is type(loader)
    for epoch in range(2):
        batches = list(found)
        expected = tags_of(guard, epoch)
        whole = len(expected) // 16 * 16  # timm's training loaders drop the last batch
        assert torch.cat([targets for _, targets in batches]).tolist() == expected[:whole]
        assert all(images.dtype == torch.float32 for images, _ in batches)
        assert len(found) == len(batches)
    loss = criterion(torch.randn(16, 3, requires_grad=True), batches[0][1])
    assert loss.isfinite()
    assert criterion.untagged_batches == 0


def test_a_loss_that_is_no_number_is_said_once_with_its_step(guard, caplog):
    """FAULTS row 53."""
    found, criterion = protect(guard, loader_of(guard.base))
    targets = next(iter(found))[1]
    for step in range(1, 5):
        logits = torch.zeros(16, 3, requires_grad=True)
        criterion(logits / (0 if step >= 3 else 1), targets)
    criterion.eval()
    criterion(torch.full((16, 3), float("nan")), targets)
    said = [r.getMessage() for r in caplog.records if "NaN or infinite since" in r.getMessage()]
    assert len(said) == 1
    assert "since step 3: the training has diverged" in said[0]


@pytest.mark.parametrize("use_prefetcher", [True, False])
def test_a_resumed_loader_draws_the_epoch_that_it_is_told(guard, use_prefetcher):
    found, _ = protect(guard, loader_of(guard.base, use_prefetcher=use_prefetcher))
    found.sampler.set_epoch(3)
    served = torch.cat([targets for _, targets in found]).tolist()
    assert served == tags_of(guard, 3)[: len(served)]


def test_the_prefetcher_keeps_normalising_and_erasing(guard):
    loader = loader_of(guard.base, no_aug=False, hflip=0.0, re_prob=1.0, re_mode="const")
    found, _ = protect(guard, loader)
    assert found is not loader
    assert found.random_erasing is loader.random_erasing
    assert found.loader.worker_init_fn is loader.loader.worker_init_fn
    assert found.loader.collate_fn is loader.loader.collate_fn
    assert not bool(is_tagged(next(iter(loader))[1]).any())  # the script's own loader still works
    images, targets = next(iter(found))
    assert bool(is_tagged(targets).all())
    assert bool((images == 0).flatten(1).any(dim=1).float().mean() > 0.5)  # erased


def test_losses_equal_a_plain_loops(guard):
    def losses(batches, criterion):
        model = tiny_net(5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return train_epoch(model, batches, criterion, optimizer)

    loader = loader_of(guard.base, use_prefetcher=False)
    loader, criterion = protect(guard, loader, LabelSmoothingCrossEntropy(0.1))
    found = losses([batch for _ in range(2) for batch in loader], criterion)
    sampler, plain = guard.sampler(), []
    for _ in range(2):
        images, tags = zip(*(guard.dataset[index] for index in sampler), strict=True)
        whole = len(tags) // 16
        plain += list(
            zip(torch.stack(images).split(16), torch.tensor(tags).split(16), strict=True)
        )[:whole]
    assert len(found) == len(plain)
    expected = losses(plain, guard.loss(nn.CrossEntropyLoss(label_smoothing=0.1)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"use_multi_epochs_loader": True}, TypeError, "MultiEpochsDataLoader"),
        ({"collate_fn": "mixup"}, ValueError, "--mixup 0 --cutmix 0"),
        ({"dataset": "another"}, ValueError, "not the one"),
    ],
)
def test_loaders_that_cannot_be_guarded_are_refused(guard, root, options, error, words):
    from timm.data import FastCollateMixup

    if options.get("collate_fn"):
        options = {"collate_fn": FastCollateMixup(mixup_alpha=0.8, num_classes=3)}
    other = options.pop("dataset", None)
    dataset = create_dataset("", root=str(root)) if other else guard.base
    with pytest.raises(error, match=words):
        protect(guard, loader_of(dataset, **options))


@pytest.mark.parametrize("use_prefetcher", [True, False])
@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (SoftTargetCrossEntropy(), "--mixup 0 --cutmix 0"),  # of mixup after the loader
        (BinaryCrossEntropy(), "without --bce-loss"),
        (JsdCrossEntropy(), "without --jsd-loss"),
    ],
)
def test_criteria_of_mixed_labels_are_refused_by_the_option(
    guard, criterion, words, use_prefetcher
):
    with pytest.raises(ValueError, match=words):
        protect(guard, loader_of(guard.base, use_prefetcher=use_prefetcher), criterion)


# --- the balanced view, and timm's own parts ----------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_balanced_view_goes_through_create_loader(guard, num_workers):
    view = guard.balanced_view
    loader = loader_of(view, num_workers=num_workers)  # persistent workers are timm's default
    for epoch in range(2):
        view.set_epoch(epoch)
        served = Counter(torch.cat([targets for _, targets in loader]).tolist())
        expected = Counter(tags_of(guard, epoch))
        assert sum((expected - served).values()) == len(view) % 16
        assert not served - expected
    view.set_epoch(0)


def test_epochs_differ_in_order_where_only_the_dataset_is_told(guard):
    # train.py tells a dataset with set_epoch the epoch, and then not its DistributedSampler, which
    # keeps one order for all epochs: the view itself must bring the order.
    view, orders = guard.balanced_view, []
    once = {int(guard.dataset[i][1]) for i in guard.split.triggered.nonzero().squeeze(1).tolist()}
    for epoch in (0, 1):
        view.set_epoch(epoch)
        orders.append([p for p, (_, tag) in enumerate(view) if int(tag) in once])
    view.set_epoch(0)
    assert len(orders[0]) == len(orders[1]) == len(once)
    assert orders[0] != orders[1]


def test_a_task_of_timm_takes_the_guarded_loss(guard):
    task = pytest.importorskip("timm.task")
    loader, criterion = protect(guard, loader_of(guard.base), LabelSmoothingCrossEntropy(0.1))
    images, targets = next(iter(loader))
    model = tiny_net()
    found = task.ClassificationTask(model, criterion=criterion, device=CPU)(images, targets)
    alone = guard.loss(nn.CrossEntropyLoss(label_smoothing=0.1))
    torch.testing.assert_close(found["loss"], alone(found["output"], targets))
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_forgetting_the_loss_or_mixing_up_is_loud(guard):
    loader, _ = protect(guard, loader_of(guard.base, batch_size=8))
    images, targets = next(iter(loader))
    for criterion in (nn.CrossEntropyLoss(), LabelSmoothingCrossEntropy(0.1)):
        with pytest.raises((IndexError, RuntimeError)):
            criterion(torch.randn(8, 3), targets)
    with pytest.raises((IndexError, RuntimeError)):
        Mixup(mixup_alpha=0.8, num_classes=3)(images, targets)


def test_validation_gets_plain_labels_and_the_plain_criterion(guard):
    smoothed = LabelSmoothingCrossEntropy(0.1)
    _, criterion = protect(guard, loader_of(guard.base), smoothed)
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(criterion.eval()(outputs, labels), smoothed(outputs, labels))


@pytest.mark.usefixtures("unchecked")
def test_the_global_stream_is_left_alone(guard):
    state = torch.get_rng_state()
    loader, _ = protect(guard, loader_of(guard.base))
    for _ in loader:
        pass
    assert torch.equal(torch.get_rng_state(), state)
