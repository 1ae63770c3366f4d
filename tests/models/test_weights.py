from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from tiny_data import Tied, tiny_net
from torch import nn

from cgd_wrap.models.outputs import logits_of, unwrapped
from cgd_wrap.models.weights import fresh_copy, hash_weights, load_checkpoint, write_weights


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


class ExtraScale(nn.Linear):
    """A parameter that the inherited ``reset_parameters`` doesn't know."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.scale = nn.Parameter(torch.rand(3, 3))

    def forward(self, x):
        return super().forward(x) @ self.scale


class ResetWithArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 8))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


class Positions(nn.Module):
    """A constant, and indices that are a parameter, as some vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(8) / 3)
        self.index = nn.Parameter(torch.arange(8), requires_grad=False)
        self.table = nn.Parameter(torch.rand(8, 2))


@pytest.mark.parametrize("made", [ExtraScale, ResetWithArguments, Positions])
def test_parameters_that_a_module_does_not_reset_itself_are_new(made):
    model = made()
    fresh = fresh_copy(model, seed=0)
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)) == (name == "index"), name
        assert parameter.isfinite().all()
        assert parameter.requires_grad == (name != "index")
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_frozen_batch_norm_holds_nothing_that_was_learned(library):
    if library == "torchvision":
        from torchvision.ops.misc import FrozenBatchNorm2d
    else:
        from timm.layers.norm_act import FrozenBatchNormAct2d as FrozenBatchNorm2d
    norm = FrozenBatchNorm2d(4)
    for buffer in norm.buffers():
        buffer.fill_(7)
    fresh = fresh_copy(nn.Sequential(nn.Conv2d(3, 4, 1), norm), seed=0)[1]
    values = {name: float(buffer.mean()) for name, buffer in fresh.named_buffers()}
    assert values == {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1} | {
        name: 0 for name in values if name == "num_batches_tracked"
    }


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    fresh = fresh_copy(model, seed=0)
    assert fresh[1].weight is fresh[0].weight
    assert not torch.equal(fresh[0].weight, model[0].weight)


def with_another_head() -> nn.Module:
    model = tiny_vit()
    model.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 5))
    return model


def with_another_activation() -> nn.Module:
    model = tiny_vit()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if "GELU" in type(child).__name__:
                setattr(parent, name, nn.Tanh())
    return model


def of_a_class_that_needs_more() -> nn.Module:
    from transformers import ViTForImageClassification

    class Named(ViTForImageClassification):
        def __init__(self, config, name):
            super().__init__(config)
            self.name = name

    return Named(tiny_vit().config, "mine")


def lora(**options) -> nn.Module:
    peft = pytest.importorskip("peft")
    model = tiny_vit()
    linear = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    targets = sorted(linear & {"q_proj", "v_proj", "query", "value"})
    config = peft.LoraConfig(target_modules=targets, modules_to_save=["classifier"], **options)
    return peft.get_peft_model(model, config)


def lora_in_place() -> nn.Module:
    peft = pytest.importorskip("peft")
    model = lora().get_base_model()
    assert not isinstance(model, peft.PeftModel)
    return model


class Forwarding(nn.Module):
    """A wrapper that passes attributes on, ``config`` and ``post_init`` among them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


WRAPPED = {
    "forwarding wrapper": lambda: Forwarding(tiny_vit()),
    "another head": with_another_head,
    "another activation": with_another_activation,
    "another __init__": of_a_class_that_needs_more,
    "LoRA": lora,
    "DoRA": lambda: lora(use_dora=True),
    "LoRA in place": lora_in_place,
    "in a module": lambda: nn.Sequential(nn.Identity(), tiny_vit()),
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@pytest.mark.parametrize("kind", WRAPPED)
def test_models_that_their_config_does_not_tell_are_copied_whole(kind):
    model = WRAPPED[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(7.0)
    fresh = fresh_copy(model, seed=0)
    assert type(fresh) is type(model)
    names = [(name, type(module)) for name, module in model.named_modules()]
    assert [(name, type(module)) for name, module in fresh.named_modules()] == names
    for name, tensor in fresh.state_dict().items():
        assert tensor.shape == model.state_dict()[name].shape
        assert not torch.equal(tensor, model.state_dict()[name]), name
    images = torch.rand(2, 3, 16, 16)
    logits = logits_of(fresh(images))
    assert logits.isfinite().all()
    logits.sum().backward()
    again = fresh_copy(model, seed=0)
    assert torch.equal(logits_of(again.eval()(images)), logits_of(fresh.eval()(images)))


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


@pytest.mark.parametrize("model", [tiny_net(seed=5), Tied()], ids=["plain", "tied"])
def test_written_weights_are_read_by_us_and_by_safetensors(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(model, path)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert safetensors.torch.load_model(other, path) == (set(), [])
    assert hash_weights(other) == hash_weights(model) == hash_weights(load_checkpoint(model, path))
    assert path.stat().st_size < 1.1 * sum(4 * p.numel() for p in model.parameters()) + 2000


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
    with pytest.raises(ValueError, match=r"can't be loaded .*expected a state dict, got"):
        load_checkpoint(tiny_net(), tmp_path / "weights.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_checkpoint(tiny_net(), tmp_path / "nothing.pt")
