"""Weights that are derived from others: a fresh copy shares none of them with the given model."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from cgd_wrap.models.weights import copy_of, fresh_copy, load_checkpoint


def old(wrap: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and used all the same
        return wrap(layer)


class Symmetric(nn.Module):
    """A user's own parametrization, which has no inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.T) / 2


class Scaled(nn.Module):
    """A user's own parametrization with a parameter and an inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(4, 4) + 1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor


class Stacked(nn.Module):
    """A user's own parametrization of another shape, which has no inverse."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if not getattr(self, "first_use", True):
            raise NotImplementedError
        self.first_use = False
        return weight[:2].clone(), weight[2:].clone()


def own(parametrization: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(4, 4), "weight", parametrization)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm, old": lambda: old(nn.utils.weight_norm, nn.Linear(4, 4)),
    "weight_norm of a convolution, old": lambda: old(nn.utils.weight_norm, nn.Conv2d(4, 4, 1)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm, old": lambda: old(nn.utils.spectral_norm, nn.Linear(4, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral_norm over weight_norm": lambda: parametrizations.spectral_norm(
        parametrizations.weight_norm(nn.Linear(4, 4))
    ),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "orthogonal, cayley": lambda: parametrizations.orthogonal(
        nn.Linear(4, 4), orthogonal_map="cayley", use_trivialization=False
    ),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
    "own, without inverse": lambda: own(Symmetric()),
    "own, with a parameter": lambda: own(Scaled()),
    "own, of two tensors": lambda: own(Stacked()),
}


@pytest.fixture(params=LAYERS)
def trained(request: pytest.FixtureRequest) -> nn.Module:
    """A model that has seen steps of training, and holds the weights of its last forward pass."""
    torch.manual_seed(7)
    head = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model = nn.Sequential(LAYERS[request.param](), head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    shape = (8, 4, 1, 1) if isinstance(model[0], nn.Conv2d) else (8, 4)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(shape)).square().sum().backward()
        optimizer.step()
    model(torch.randn(shape))
    return model


def output(model: nn.Module) -> Tensor:
    shape = (8, 4, 1, 1) if isinstance(model[0], nn.Conv2d) else (8, 4)
    with torch.no_grad():
        return model.eval()(torch.ones(shape))


def test_a_fresh_copy_shares_nothing_with_the_model(trained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    expected = output(trained)
    fresh = fresh_copy(trained, seed=0)
    state = fresh.state_dict()
    assert list(state) == list(before)
    for name, tensor in state.items():
        if not name.endswith("mask"):  # of a pruned layer: where it has no weights
            assert tensor.isfinite().all(), name
            assert not torch.equal(tensor, before[name]), name
            assert tensor.data_ptr() != trained.state_dict()[name].data_ptr(), name
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert torch.equal(output(trained), expected)
    assert not torch.equal(output(fresh), expected)


def test_the_seed_alone_decides_a_fresh_copy(trained: nn.Module) -> None:
    torch.manual_seed(1)
    one = fresh_copy(trained, seed=3).state_dict()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    same, other = fresh_copy(trained, seed=3).state_dict(), fresh_copy(trained, seed=4).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_fresh_copy_trains_by_itself(trained: nn.Module) -> None:
    fresh = fresh_copy(trained, seed=0).train()
    before = output(fresh)
    shape = (8, 4, 1, 1) if isinstance(fresh[0], nn.Conv2d) else (8, 4)
    optimizer = torch.optim.SGD(fresh.train().parameters(), lr=0.1)
    fresh(torch.randn(shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fresh.parameters())
    optimizer.step()
    assert not torch.equal(output(fresh), before)


def test_spectral_norms_of_a_fresh_copy_hold_at_once() -> None:
    for norm in (parametrizations.spectral_norm, nn.utils.spectral_norm):
        model = old(norm, nn.Linear(16, 16))
        weight = fresh_copy(model, seed=0).eval().weight.detach()
        assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(1, abs=0.1)


def test_a_model_that_keeps_tensors_of_its_last_pass_can_be_copied(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.features = {"last": [model(torch.ones(2, 4))]}
    copied = copy_of(model)
    assert torch.equal(copied.features["last"][0], model.features["last"][0])
    assert not copied.features["last"][0].requires_grad
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert load_checkpoint(model, tmp_path / "weights.pt") is not model
