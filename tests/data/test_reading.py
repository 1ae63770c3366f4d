"""Reading samples that crash, hang, or can't be read, and those beside them that can."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from cgd_wrap.data.reading import SampleReader, read_values
from cgd_wrap.data.samples import Samples, fatal_probes
from cgd_wrap.data.workers import Sample, Workers
from cgd_wrap.errors import BadSampleError, DatasetError, NoImageError

N = 40


def hang() -> None:
    time.sleep(1000)


def hang_in_c() -> None:
    """Without ever letting another Python thread run: no timer of Python's own would end it."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(1)


class Numbers(Dataset[Any]):
    """Squares; some indices do something else first. Each read is noted in a file."""

    def __init__(self, folder: Path, **odd: Any) -> None:
        self.reads, self.odd = folder / "reads", {int(k[1:]): v for k, v in odd.items()}
        self.paths = [f"{index}.jpg" for index in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        with self.reads.open("a") as file:
            file.write(f"{index}\n")
        self.odd.get(index, lambda: None)()
        return index * index

    def counts(self) -> Counter[int]:
        return Counter(int(line) for line in self.reads.read_text().split())


def read_all(view: Any, workers: Workers, known: Any = None, batch_size: int = 4) -> dict[int, Any]:
    found: list[Sample] = []
    taken: list[int] = []

    def take(number: int, samples: list[Sample]) -> None:
        taken.append(number)
        found.extend(samples)

    jobs = [range(start, start + 8) for start in range(0, N, 8)]
    SampleReader(view, workers, known).read(jobs, take, batch_size=batch_size)
    assert taken == list(range(len(jobs)))  # each job once, in order
    assert sorted(index for index, _ in found) == list(range(N))
    return dict(found)


def assert_all_but(found: dict[int, Any], reasons: dict[int, str]) -> None:
    for index, value in found.items():
        if index in reasons:
            assert isinstance(value, BadSampleError)
            assert (value.index, value.reason) == (index, reasons[index])
            assert value.path == f"{index}.jpg"
        else:
            assert value == index * index
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_sample_once_in_order(tmp_path: Path, count: int) -> None:
    numbers = Numbers(tmp_path)
    assert_all_but(read_all(numbers, Workers(count)), {})
    assert set(numbers.counts().values()) == {1}


@pytest.mark.parametrize("deadly", [segfault, kill, leave])
def test_a_sample_that_kills_its_worker(tmp_path: Path, deadly: Any) -> None:
    """Rows 6 and 56: the sample alone is bad, and is read at most once more."""
    numbers = Numbers(tmp_path, _0=deadly, _21=deadly)
    found = read_all(numbers, Workers(2))
    assert_all_but(found, {0: "worker_killed", 21: "worker_killed"})
    assert numbers.counts()[21] == 2


@pytest.mark.parametrize("stuck", [hang, hang_in_c])
def test_a_sample_that_hangs(tmp_path: Path, stuck: Any) -> None:
    """Row 55."""
    found = read_all(Numbers(tmp_path, _13=stuck), Workers(2, timeout=0.5))
    assert_all_but(found, {13: "timeout"})
    assert "took more than 0.5 seconds (sample_timeout)" in str(found[13])


def test_a_slow_batch_is_no_hang(tmp_path: Path) -> None:
    def slow() -> None:
        time.sleep(0.3)

    numbers = Numbers(tmp_path, **{f"_{index}": slow for index in range(8)})
    assert_all_but(read_all(numbers, Workers(1, timeout=1.5), batch_size=8), {})
    assert set(numbers.counts().values()) == {1}


def test_known_bad_samples_are_not_read(tmp_path: Path) -> None:
    known = {i: BadSampleError(i, "worker_killed", "before", f"{i}.jpg") for i in (0, 21)}
    numbers = Numbers(tmp_path, _0=kill, _21=kill)
    for workers in (Workers(), Workers(2)):
        assert_all_but(read_all(numbers, workers, known), dict.fromkeys(known, "worker_killed"))
    assert not numbers.counts().keys() & known.keys()


def test_too_many_deadly_samples_end_it(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path, _3=kill, _9=kill, _20=kill, _30=kill)
    with pytest.raises(DatasetError, match=r"4 samples killed .* sample 30 .*fewer num_workers"):
        read_all(numbers, Workers(1))


def test_deaths_that_no_sample_explains_end_it(tmp_path: Path) -> None:
    """Row 40: as when two workers together need more memory than there is."""

    def die_beside_another() -> None:
        info = get_worker_info()
        if info is not None and info.num_workers > 1:
            kill()

    numbers = Numbers(tmp_path, _5=die_beside_another)
    with pytest.raises(DatasetError, match=r"4 times in a row.*memory short.* than 4\."):
        read_all(numbers, Workers(2))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("error", [DatasetError("of the whole"), NoImageError("sample 3: a str")])
def test_our_own_errors_come_through_as_they_are(tmp_path: Path, error, count: int) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        read_all(Numbers(tmp_path, _3=fail), Workers(count))
    assert str(caught.value) == str(error)


def test_a_death_does_not_break_off_what_is_done_with_the_samples(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path, _9=kill)
    steps: list[tuple[int, int]] = []

    def take(number: int, samples: list[Sample]) -> None:
        for step in range(20):
            time.sleep(0.02)  # the worker dies meanwhile
            steps.append((number, step))

    handler = signal.getsignal(signal.SIGCHLD)
    SampleReader(numbers, Workers(1)).read([range(8), range(8, 16)], take, batch_size=8)
    assert steps == [(number, step) for number in range(2) for step in range(20)]
    assert callable(signal.getsignal(signal.SIGCHLD)) or handler == signal.SIG_DFL


@pytest.mark.parametrize("count", [0, 2])
def test_values_come_in_the_order_that_is_asked_for(tmp_path: Path, count: int) -> None:
    known = {4: BadSampleError(4, "empty", "nothing")}
    wanted = [9, 2, 4, 2, 30]
    found = read_values(Numbers(tmp_path), wanted, Workers(count), known)
    assert [found[2].reason, *found[:2], *found[3:]] == ["empty", 81, 4, 4, 900]
    assert read_values(Numbers(tmp_path), [], Workers(count)) == []


def test_tensors_of_one_kind_and_of_several_come_through() -> None:
    for kinds in ([(2,)], [(2,), (3,)]):
        images = [torch.full(kinds[i % len(kinds)], i) for i in range(N)]
        found = read_all(images, Workers(1))
        assert all(torch.equal(found[i], images[i]) for i in range(N))


def test_deadly_probes_are_found_in_a_worker(tmp_path: Path) -> None:
    """Row 56."""
    numbers = Numbers(tmp_path, _0=kill, _39=hang)
    found = fatal_probes(numbers, Workers(2, timeout=0.5))
    assert {i: bad.reason for i, bad in found.items()} == {0: "worker_killed", 39: "timeout"}
    assert fatal_probes(Numbers(tmp_path, _0=kill), Workers(0)) == {}


def test_whatever_fails_names_its_sample(tmp_path: Path) -> None:
    """Row 17."""

    def bug() -> None:
        raise KeyError("a bug")

    with pytest.raises(BadSampleError, match=r"sample 7 \('7\.jpg'\) .*getitem_failed.*a bug"):
        Samples(Numbers(tmp_path, _7=bug))[7]
    with pytest.raises(BadSampleError, match=r"sample 2 .*TypeError"):
        Samples(Numbers(tmp_path), of=len)[2]
