"""Workers that aren't forked, with generators of the user's: all that they are sent can be sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_data import NAMES, Items, TintReader, pictures, quick_config, tensors, tiny_net
from torch.utils.data import DataLoader, RandomSampler

from cgd_wrap import CGDGuard


@pytest.fixture(params=["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """The start method that the user has set for the whole process."""
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["tiny_data"])
    torch.multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    torch.multiprocessing.set_start_method(before, force=True)


def guard_of(samples: list[Any], workers: int) -> CGDGuard:
    return CGDGuard(
        tiny_net(), Items(samples), NAMES, clip=TintReader(), num_workers=workers, progress=False,
        config=quick_config(suspicious_epochs=1, suspicious_runs=1),
    )  # fmt: skip


@pytest.mark.slow  # a new interpreter for each pass over the data
@pytest.mark.parametrize("samples", [tensors, pictures])
def test_a_scan_gives_the_same_scores(method: str, samples: Any) -> None:
    expected = guard_of(samples(), 0).scan().entropy_map
    found = guard_of(samples(), 1).scan().entropy_map
    assert torch.equal(found.clip_nll, expected.clip_nll)
    assert torch.equal(found.suspicious_nll, expected.suspicious_nll)


def test_guarded_loaders_and_views_serve_the_same_samples(method: str) -> None:
    guard = guard_of(tensors(), 0).scan()

    def targets(loader: Any) -> list[int]:
        return [int(target) for _, batch in loader for target in batch]

    def loader_of(data: Any, **options: Any) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        return DataLoader(data, 32, generator=generator, **options)

    workers = {"num_workers": 1, "multiprocessing_context": method, "persistent_workers": True}
    served = []
    for options in ({}, workers):
        sampler = RandomSampler(guard.base, generator=torch.Generator().manual_seed(2))
        plain = loader_of(guard.base, sampler=sampler, **options)
        view = loader_of(guard.balanced_view, shuffle=True, **options)
        served.append([targets(guard.protect(plain)[0]), targets(view)])
    assert served[0] == served[1]
