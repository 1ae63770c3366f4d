"""torch's modes and defaults as a user may have set them: the guard works under them, alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny_data import NAMES, Items, TintReader, quick_config, tensors, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap import CGDGuard
from cgd_wrap.randomness import plain_torch, seeded

CONFIG = quick_config(suspicious_epochs=1, suspicious_runs=1, epochs=1)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients off": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "deterministic algorithms": deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}


def global_state() -> list[Any]:
    return [
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(),
    ]  # fmt: skip


TRAINABLE = ("default dtype", "default device cpu", "deterministic algorithms")  # without us, too


def guard_of(model: nn.Module | None = None) -> CGDGuard:
    data = Items(tensors())
    return CGDGuard(
        model or tiny_net(), data, NAMES, clip=TintReader(), config=CONFIG, progress=False
    )


def scores(guard: CGDGuard) -> list[Tensor]:
    return [*vars(guard.entropy_map).values(), *vars(guard.split).values()]


def loop(model: nn.Module, loader: Any, criterion: Any) -> list[Tensor]:
    """The user's own training, in the user's own state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, targets in loader:
        optimizer.zero_grad()
        criterion(model(images), targets).backward()
        optimizer.step()
    return list(model.parameters())


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Tensor]]:
    """What scan, fit and a loop give where nothing has been set."""
    guard = guard_of().scan()
    protected = guard.protect(DataLoader(guard.base, 16, shuffle=True))
    found = {"scan": scores(guard), "loop": loop(tiny_net(), *protected)}
    guard.fit()
    return found | {"fit": list(guard.model.parameters())}


@pytest.mark.parametrize("name", STATES)
def test_scan_fit_and_loop_give_the_same_bits_in_any_state(
    name: str, expected: dict[str, list[Tensor]]
) -> None:
    """No tensor of the guard's is bound to inference mode, to fp64 or to a device."""
    model, other = tiny_net(), tiny_net()
    with STATES[name]():
        before = global_state()
        guard = guard_of(model).scan()
        protected = guard.protect(DataLoader(guard.base, 16, shuffle=True))
        assert len(guard.balanced_view) > 0
        guard.fit()
        assert global_state() == before
    assert all(map(torch.equal, scores(guard), expected["scan"]))
    assert all(map(torch.equal, model.parameters(), expected["fit"]))
    with STATES[name]() if name in TRAINABLE else nullcontext():
        assert all(map(torch.equal, loop(other, *protected), expected["loop"]))


def test_a_double_model_is_fitted_as_its_data_are() -> None:
    """The default type of the user's model and transforms stays in ``fit``."""

    class OfDefaultType(Items):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image.to(torch.get_default_dtype()), label

    with default_dtype():
        model = tiny_net()
        data = OfDefaultType(tensors())
        guard = CGDGuard(model, data, NAMES, clip=TintReader(), config=CONFIG, progress=False)
        assert guard.scan().fit()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_is_fitted_on_data_of_the_usual_type(kind: torch.dtype) -> None:
    """As in the scan, images are cast to the type of the weights; also for the stopping rule."""
    config = CONFIG.replace(holdout_fraction=0.1, tolerance=0.5)
    model = tiny_net().to(kind)
    guard = CGDGuard(model, tensors(), NAMES, clip=TintReader(), config=config, progress=False)
    (record, *_) = guard.scan().fit()
    assert record.held_out_accuracy is not None
    assert {parameter.dtype for parameter in model.parameters()} == {kind}


def test_the_state_comes_back_after_an_error() -> None:
    with torch.inference_mode(), default_dtype(), default_device("meta"):
        before = global_state()
        with pytest.raises(KeyError), plain_torch():
            raise KeyError
        assert global_state() == before


def test_seeded_code_draws_as_by_torchs_own_seed_and_the_stream_is_restored():
    state = torch.get_rng_state()
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        expected = torch.rand(3)
    with seeded(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), state)
