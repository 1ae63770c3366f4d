from __future__ import annotations

from collections import OrderedDict, deque
from functools import lru_cache

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, Subset

from cgd_wrap.data.identity import dataset_identity, decoder_versions, merged, settled_parts
from cgd_wrap.files import agreed, differing_fields

N = 40


class Numbers:
    """A dataset of numbers, whose subclasses change when they are read."""

    def __init__(self) -> None:
        self.values = np.arange(N)
        self.labels = [i % 3 for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int):
        return self.read(index), self.labels[index]

    def read(self, index: int):
        return self.values[index]


class Counting(Numbers):
    reads = 0

    def read(self, index):
        self.reads += 1
        return super().read(index)


class CountingInADict(Numbers):
    def __init__(self):
        super().__init__()
        self.state = {"reads": 0, "scale": 2}

    def read(self, index):
        self.state["reads"] += 1
        return super().read(index)


class Cached(Numbers):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def read(self, index):
        if index not in self.cache:
            self.cache[index] = np.array([super().read(index)])
        return self.cache[index]


class FilledList(Numbers):
    def __init__(self):
        super().__init__()
        self.ready = [None] * N

    def read(self, index):
        if self.ready[index] is None:
            self.ready[index] = super().read(index)
        return self.ready[index]


class LeastRecentlyUsed(Numbers):
    def __init__(self):
        super().__init__()
        self.recent = OrderedDict()

    def read(self, index):
        self.recent[index] = super().read(index)
        while len(self.recent) > 5:
            self.recent.popitem(last=False)
        return self.recent[index]


class Queued(Numbers):
    def __init__(self):
        super().__init__()
        self.last = deque(maxlen=3)

    def read(self, index):
        self.last.append(index)
        return super().read(index)


class LateFile(Numbers):
    file = None

    def read(self, index):
        if self.file is None:
            self.opened = open(__file__)  # noqa: SIM115
            self.file = self.opened.read()
        return super().read(index)

    def __del__(self):
        if self.file is not None:
            self.opened.close()


class LruMethod(Numbers):
    def __init__(self):
        super().__init__()
        self.quick = lru_cache(3)(lambda index: index)

    def read(self, index):
        return self.quick(index)


class Closure(Numbers):
    def __init__(self):
        super().__init__()
        seen = []

        def noted(index):
            seen.append(index)
            return index

        self.noted = noted

    def read(self, index):
        return self.noted(index)


KINDS = [
    Numbers, Counting, CountingInADict, Cached, FilledList, LeastRecentlyUsed, Queued, LateFile,
    LruMethod, Closure,
]  # fmt: skip


def first_read(dataset, indices=range(0, N, 7)):
    """Some samples are read before any identity is taken, as a guard's constructor does."""
    for index in indices:
        dataset[index]
    return dataset


def identity(dataset):
    return dataset_identity(dataset, "dataset")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(ConcatDataset([d, d]), range(N))])
def test_a_fresh_dataset_and_one_that_was_read_through_are_the_same(kind, wrap):
    fresh, read = first_read(wrap(kind())), first_read(wrap(kind()), range(N))
    for stored, now in ((fresh, read), (read, first_read(wrap(kind()))), (read, read)):
        found = identity(stored)
        assert not differing_fields(found, agreed(found, identity(now)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["values", "labels"])
def test_a_real_change_is_never_taken_for_one_by_reading(kind, change):
    stored, other = identity(first_read(kind())), kind()
    getattr(other, change)[3] = 77
    first_read(other, range(N))
    assert set(differing_fields(stored, agreed(stored, identity(other)))) == {f"dataset.{change}"}


def test_beside_a_counter_the_rest_of_a_dict_counts():
    stored, other = identity(CountingInADict()), CountingInADict()
    assert stored["volatile"] == ["dataset.state.reads"]
    other.state["scale"] = 3
    changed = differing_fields(stored, agreed(stored, identity(other)))
    assert changed == {"dataset.state.scale": ("2", "3")}


def test_a_device_of_another_name_is_the_same_object():
    class Placed(Numbers):
        device = "cuda:0"

    other = Placed()
    other.device = "cpu"
    assert identity(Placed())["dataset"] == identity(other)["dataset"]


def test_identities_are_put_together():
    assert merged({"a": 1, "volatile": ["x"]}, {"b": 2}, {"c": 3, "volatile": ["w"]}) == {
        "a": 1, "b": 2, "c": 3, "volatile": ["w", "x"],
    }  # fmt: skip


def test_a_part_below_a_volatile_one_is_volatile():
    found = {"a": 1, "d.cache[]": 2, "d.cached": 5, "volatile": ["d.cache"]}
    wanted = {"a": 1, "d.cache": 3, "d.cache.x": 4, "d.cached": 6, "volatile": []}
    assert differing_fields(found, agreed(found, wanted)) == {"d.cached": (5, 6)}


def test_settled_parts_keep_the_users_random_stream():
    state = np.random.get_state()[1].copy()
    assert settled_parts(lambda: {"a": "1"}, lambda: np.random.rand()) == {"a": "1", "volatile": []}
    assert (np.random.get_state()[1] == state).all()


def test_versions_have_two_numbers():
    assert all(version.count(".") == 1 for version in decoder_versions().values())
    assert "pillow" in decoder_versions()
