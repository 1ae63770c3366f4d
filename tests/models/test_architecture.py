from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cgd_wrap.models.architecture import describe_model
from cgd_wrap.models.inputs import InputKind

SHAPE = (3, 8, 8)
INPUTS = InputKind(SHAPE)


class Net(nn.Module):
    """A network with settings of every kind, and with state."""

    def __init__(self, activation=F.relu, *, dropout: float = 0.1, scale: float = 2.0) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.dropout, self.activation, self.scale = nn.Dropout(dropout), activation, scale
        self.register_buffer("mean", torch.ones(3, 1, 1), persistent=False)
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.features, self.device = 0, None, "cpu"

    def forward(self, images):
        self.calls += 1
        self.features = self.activation(self.conv(images - self.mean))
        return self.linear(self.dropout(self.pooled())) * self.scale

    def pooled(self):
        return self.features.mean((2, 3))


class OtherPooling(Net):
    def pooled(self):
        return self.features.amax((2, 3))


class OtherForward(Net):
    def forward(self, images):
        return super().forward(images) + 1


class Listed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, images):
        for layer in self.layers:
            images = layer(images)
        return images.mean((2, 3))


def sequential(*layers) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def differing(one, other) -> set[str]:
    first, second = describe_model(one, INPUTS), describe_model(other, INPUTS)
    return {name for name in first | second if first.get(name) != second.get(name)}


def named(model, name):
    """The same model under the class name of another."""
    type(model).__qualname__ = name
    return model


def with_buffer():
    model = Net()
    model.mean *= 2
    return model


OTHERS = {
    "an activation as attribute": (Net, lambda: Net(torch.tanh), "architecture.activation"),
    "a function of the user's": (Net, lambda: Net(lambda x: x), "architecture.activation"),
    "dropout": (Net, lambda: Net(dropout=0.5), "architecture.dropout"),
    "a number": (Net, lambda: Net(scale=3.0), "architecture.scale"),
    "a buffer without checkpoint": (Net, with_buffer, "architecture.mean"),
    "a method that forward uses": (Net, lambda: named(OtherPooling(), "Net"), "architecture"),
    "forward": (Net, lambda: named(OtherForward(), "Net"), "architecture"),
    "a layer": (
        lambda: sequential(nn.ReLU()), lambda: sequential(nn.Tanh()), "architecture.1"
    ),
    "a slope": (
        lambda: sequential(nn.LeakyReLU(0.1)), lambda: sequential(nn.LeakyReLU(0.2)),
        "architecture.1",
    ),
    "the order": (
        lambda: sequential(nn.ReLU(), nn.Tanh()), lambda: sequential(nn.Tanh(), nn.ReLU()),
        "architecture.1",
    ),
    "padding": (
        lambda: sequential(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        "architecture.1",
    ),
    "shapes": (
        lambda: sequential(nn.Conv2d(8, 8, 3)), lambda: sequential(nn.Conv2d(8, 8, 1)),
        "architecture shapes",
    ),
    "a layer that comes twice": (
        lambda: sequential(layer := nn.ReLU(), layer), lambda: sequential(nn.ReLU()),
        "architecture.2",
    ),
    "a script": (
        lambda: torch.jit.script(sequential(nn.ReLU())),
        lambda: torch.jit.script(sequential(nn.Tanh())), "architecture.1",
    ),
    "a script of a list": (
        lambda: torch.jit.script(Listed(nn.ReLU())),
        lambda: torch.jit.script(Listed(nn.Tanh())), "architecture.layers.0",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("kind", OTHERS)
def test_another_function_is_another_model(kind):
    one, other, field = OTHERS[kind]
    assert field in differing(one(), other())


def trained(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
        model.steps += 9
    model(torch.rand(4, *SHAPE))
    return model


def hooked(model):
    model.register_forward_hook(lambda *given: None)
    model.conv.register_forward_pre_hook(lambda *given: None)
    return model


def compiled_within(model):
    model.conv = torch.compile(model.conv, backend="eager")
    return model


def renamed_device(model):
    model.device = "cuda:1"
    return model


SAME = {
    "trained": trained,
    "in evaluation": lambda model: model.eval(),
    "frozen": lambda model: model.requires_grad_(False),
    "hooked": hooked,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled within": compiled_within,
    "on another device": renamed_device,
    "in double precision": lambda model: model.double(),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_leaves_the_function_alone_leaves_the_model(kind):
    changed = differing(Net(), SAME[kind](Net()))
    assert changed <= ({"architecture.mean"} if kind == "in double precision" else set())


def test_state_of_a_forward_pass_is_left_out_and_put_down_by_name():
    described = describe_model(Net(), INPUTS)
    assert described["volatile"] == ["architecture.calls", "architecture.features"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weights_that_are_computed_from_others_do_not_count():
    def normed():
        return sequential(nn.utils.weight_norm(nn.Conv2d(8, 8, 1)))

    assert not differing(normed(), normed())


def test_models_of_transformers_count_by_their_configuration():
    transformers = pytest.importorskip("transformers")

    def model(**changes):
        config = transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            image_size=8, patch_size=4, num_labels=3, **changes,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config)

    plain, resumed = model(), model()
    resumed.config._name_or_path = "runs/checkpoint-500"
    resumed.config.problem_type = "single_label_classification"
    resumed.vit.gradient_checkpointing = True
    assert not differing(plain, resumed)
    assert "architecture.config.hidden_act" in differing(plain, model(hidden_act="relu"))
