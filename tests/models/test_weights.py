from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from tiny_data import tiny_net
from torch import nn

from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.weights import fresh_copy, load_checkpoint


def tiny_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


class OwnParameters(nn.Module):
    """Parameters of its own, and an attention without ``reset_parameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.scale = nn.Parameter(torch.rand(8))
        self.bias = nn.Parameter(torch.rand(8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)


MODELS = {
    "torch": tiny_net,
    "own parameters": OwnParameters,
    "timm vit": lambda: timm.create_model("test_vit", num_classes=3),
    "timm resnet": lambda: timm.create_model("resnet10t", num_classes=3),
    "transformers vit": tiny_vit,
    "in DataParallel": lambda: nn.DataParallel(tiny_net()),
    "compiled in DataParallel": lambda: nn.DataParallel(torch.compile(tiny_net(), backend="eager")),
    "frozen": lambda: tiny_net().requires_grad_(False),
}


@pytest.fixture(params=MODELS)
def marked(request) -> nn.Module:
    """A model, all of whose weights are 7."""
    model = MODELS[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def test_every_parameter_is_new(marked):
    fresh = fresh_copy(marked, seed=0)
    assert type(fresh) is type(unwrapped(marked))
    names = [name for name, parameter in fresh.named_parameters() if (parameter == 7).any()]
    assert names == []
    for name, parameter in fresh.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.requires_grad, name
        if parameter.ndim > 1:
            assert parameter.std() > 0, name
    for name, buffer in fresh.named_buffers():
        assert buffer.shape == unwrapped(marked).get_buffer(name).shape


def test_the_model_and_the_global_stream_are_left_alone(marked):
    before = copy.deepcopy(marked.state_dict())
    flags = [parameter.requires_grad for parameter in marked.parameters()]
    state = torch.get_rng_state()
    fresh_copy(marked, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [parameter.requires_grad for parameter in marked.parameters()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in marked.state_dict().items())


def test_the_seed_decides_the_weights(marked):
    torch.manual_seed(1)
    one = fresh_copy(marked, seed=3).state_dict()
    torch.manual_seed(2)
    same, other = fresh_copy(marked, seed=3).state_dict(), fresh_copy(marked, seed=4).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_statistics_of_batch_norm_start_anew():
    model = tiny_net()
    model(torch.randn(4, 3, 8, 8) + 5)
    fresh = fresh_copy(model, seed=0)
    assert (fresh[1].running_mean == 0).all()
    assert fresh[1].num_batches_tracked == 0


def written(kind: str, folder: Path) -> Path:
    weights = tiny_net(seed=5).state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(weights, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    value = {
        "state dict": weights,
        "model": {"model": weights, "epoch": 3},
        "state_dict": {"state_dict": prefixed, "arch": "tiny"},
        "module.": prefixed,
    }[kind]
    torch.save(value, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "model", "state_dict", "module."])
def test_checkpoints_are_read(kind, tmp_path):
    model = tiny_net()
    loaded = load_checkpoint(model, written(kind, tmp_path))
    expected, before = tiny_net(seed=5).state_dict(), tiny_net().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Harmful:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_submodule_called_module_keeps_its_name(tmp_path):
    model = nn.Sequential()
    model.module = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_checkpoint(model, tmp_path / "weights.pt")
    assert torch.equal(loaded.module.weight, model.module.weight)


def test_checkpoints_of_compiled_models_are_read(tmp_path):
    compiled = torch.compile(tiny_net(seed=5), backend="eager")
    torch.save(compiled.state_dict(), tmp_path / "weights.pt")
    for model in (compiled, tiny_net()):
        loaded = load_checkpoint(model, tmp_path / "weights.pt").state_dict()
        assert all(map(torch.equal, loaded.values(), compiled.state_dict().values()))


@pytest.mark.parametrize("write", [torch.save, lambda v, path: path.write_bytes(pickle.dumps(v))])
def test_code_in_a_checkpoint_is_refused_and_never_run(write, tmp_path):
    path, proof = tmp_path / "weights.pt", tmp_path / "ran"
    write({"model": Harmful(proof)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"weights\.pt' can't be loaded"):
        load_checkpoint(tiny_net(), path)
    assert not proof.exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["safetensors", "state dict"])
def test_weights_of_another_architecture_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="can't be loaded as weights of Sequential"):
        load_checkpoint(tiny_net(classes=4), written(kind, tmp_path))


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3)])
def test_a_file_without_weights_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="can't be loaded"):
        load_checkpoint(tiny_net(), tmp_path / "weights.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_checkpoint(tiny_net(), tmp_path / "nothing.pt")
