from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import Items
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from cgd_wrap.data import SampleLayout
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.tags import TAG

Triple = namedtuple("Triple", "image label name")

TUPLE, DICT = SampleLayout(0, 1), SampleLayout("image", "label")
SIZE = 10
IMAGES = torch.arange(SIZE, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
KINDS = {
    "int": lambda label: label,
    "np.int64": lambda label: np.int64(label),
    "0-d tensor": lambda label: torch.tensor(label),
}

STRUCTURES = {
    "tuple": (lambda x, y: (x, y, "name"), TUPLE),
    "namedtuple": (lambda x, y: Triple(x, y, "name"), TUPLE),
    "list": (lambda x, y: [x, y, "name"], TUPLE),
    "dict": (lambda x, y: {"image": x, "label": y, "name": "name"}, DICT),
}


def pairs() -> TensorDataset:
    return TensorDataset(IMAGES, torch.arange(SIZE) % 3)


def epochs_of(labels: torch.Tensor) -> EpochIndices:
    """Classes of different size among the clean ones; the last two samples appear once."""
    index = torch.arange(len(labels))
    return EpochIndices(
        labels=labels, clean=index < len(labels) - 2, times=(index >= len(labels) - 2).long()
    )


def view_of(base: Any, layout: SampleLayout = TUPLE) -> BalancedView:
    # Six clean samples of the first class, two of the second.
    return BalancedView(GuardedDataset(base, layout), epochs_of(torch.arange(SIZE) // 6))


# --- GuardedDataset -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_keep_their_structure_and_kind_of_label(structure, kind):
    make, layout = STRUCTURES[structure]
    base = Items([make(IMAGES[i], KINDS[kind](i % 3)) for i in range(SIZE)])
    sample, original = GuardedDataset(base, layout)[4], base[4]
    assert type(sample) is type(original)
    assert len(sample) == 3
    assert layout.image_of(sample) is layout.image_of(original)
    label = layout.label_of(sample)
    assert type(label) is type(layout.label_of(original))
    assert label == TAG + 4
    assert layout.label_of(original) == 1
    batch = next(iter(DataLoader(GuardedDataset(base, layout), batch_size=4)))
    assert layout.label_of(batch).dtype == torch.int64
    assert layout.label_of(batch).tolist() == [TAG, TAG + 1, TAG + 2, TAG + 3]


def hugging_face() -> datasets.Dataset:
    columns = {"image": IMAGES.tolist(), "label": [i % 3 for i in range(SIZE)]}
    return datasets.Dataset.from_dict(columns).with_format("torch")


@pytest.mark.parametrize(
    ("base", "layout"),
    [
        (hugging_face(), DICT),
        (Subset(hugging_face(), range(SIZE)), DICT),
        (Subset(pairs(), range(SIZE)), TUPLE),
        (pairs(), TUPLE),
    ],
    ids=["datasets", "Subset of datasets", "Subset", "TensorDataset"],
)
def test_batches_that_the_base_reads_at_once_are_tagged(base, layout):
    guarded = GuardedDataset(base, layout)
    samples = guarded.__getitems__([7, 0, -1])
    assert [int(layout.label_of(sample)) - TAG for sample in samples] == [7, 0, 9]
    seen = [layout.label_of(batch) for batch in DataLoader(guarded, batch_size=4)]
    assert (torch.cat(seen) - TAG).tolist() == list(range(SIZE))
    view = BalancedView(guarded, epochs_of(torch.arange(SIZE) % 3))
    seen = [layout.label_of(batch) for batch in DataLoader(view, batch_size=4)]
    assert torch.equal(torch.cat(seen) - TAG, view.indices)


def test_negative_indices_count_from_the_end():
    guarded = GuardedDataset(pairs(), TUPLE)
    assert int(guarded[-1][1]) == TAG + SIZE - 1
    assert torch.equal(guarded[-1][0], IMAGES[-1])
    for index in (SIZE, -SIZE - 1):
        with pytest.raises(IndexError):
            guarded[index]
    view = view_of(pairs())
    assert int(view[-1][1]) == int(view[len(view) - 1][1])


def test_iterating_stops_at_the_end():
    assert len(list(GuardedDataset(pairs(), TUPLE))) == SIZE
    view = view_of(pairs())
    assert len(list(view)) == len(view)


class Folder(Dataset[Any]):
    """Has what users read off a dataset, and what a wrapper must not forward."""

    def __init__(self) -> None:
        self.classes, self.transform, self._secret = ["a", "b"], None, 1
        self.__fancy__ = "not forwarded"

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        image = IMAGES[index]
        return (self.transform(image) if self.transform else image), index % 3


@pytest.mark.parametrize("make", [lambda base: GuardedDataset(base, TUPLE), view_of])
def test_attributes_are_forwarded_but_not_dunders(make):
    wrapped = make(Folder())
    assert wrapped.classes == ["a", "b"]
    for name in ("_secret", "__fancy__", "nothing"):
        assert not hasattr(wrapped, name)


@pytest.mark.parametrize("make", [lambda base: GuardedDataset(base, TUPLE), view_of])
def test_transform_can_be_set(make):
    base = Folder()
    wrapped = make(base)
    assert wrapped.transform is None
    wrapped.transform = lambda image: image + 100
    assert base.transform is wrapped.transform
    index = int(wrapped[3][1]) - TAG
    assert torch.equal(wrapped[3][0], IMAGES[index] + 100)


@pytest.mark.parametrize("make", [lambda base: GuardedDataset(base, TUPLE), view_of])
@pytest.mark.parametrize("copied", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_copies_give_the_same_samples(make, copied):
    wrapped = make(pairs())
    twin = copied(wrapped)
    assert len(twin) == len(wrapped)
    for one, other in zip(twin, wrapped, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


# --- BalancedView -------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=3, max_size=40), st.integers(0, 50))
def test_each_index_is_as_often_as_the_map_says(labels, epoch):
    base = [(index, label) for index, label in enumerate(labels)]
    epochs = epochs_of(torch.tensor(labels))
    view = BalancedView(GuardedDataset(base, TUPLE), epochs)
    view.set_epoch(epoch)
    assert len(view) == len(epochs)
    served = list(view)
    tags = torch.tensor([label for _, label in served])
    assert [index for index, _ in served] == (tags - TAG).tolist()
    expected = torch.bincount(epochs.of(epoch), minlength=len(labels))
    assert torch.equal(torch.bincount(tags - TAG, minlength=len(labels)), expected)


def test_an_epoch_draws_anew_and_the_same_each_time():
    view = view_of(pairs())
    first = view.indices.clone()
    view.set_epoch(1)
    second = view.indices.clone()
    assert not torch.equal(first, second)
    view.set_epoch(1)
    assert torch.equal(view.indices, second)
    view.set_epoch(0)
    assert torch.equal(view.indices, first)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_see_the_epoch_that_is_set(start):
    view = view_of(pairs())
    loader = DataLoader(
        view, batch_size=4, num_workers=1, multiprocessing_context=start, persistent_workers=True
    )
    maps = []
    for epoch in (0, 1, 2):
        view.set_epoch(epoch)
        seen = torch.cat([targets for _, targets in loader]) - TAG
        assert torch.equal(seen, view.epochs.shuffled(epoch))
        maps.append(seen.tolist())
    assert maps[0] != maps[1]
