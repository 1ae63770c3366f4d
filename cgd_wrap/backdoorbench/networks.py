"""The networks that BackdoorBench trains, by BackdoorBench's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cgd_wrap.backdoorbench.preact_resnet import preact_resnet18
from cgd_wrap.escaping import brief

VIT_SIZE = 224  # pixels; BackdoorBench puts a resize before its vision transformers


def build_network(
    model_name: str, num_classes: int, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a network by BackdoorBench's name: ``preactresnet18``, or a model of torchvision.

    Args:
        model_name: such as ``"preactresnet18"``, ``"vgg19_bn"`` or ``"vit_b_16"``.
        num_classes: number of outputs.
        weights: the network's state dict. Default: freshly initialised; nothing is downloaded.

    Raises:
        ValueError: the name is unknown, or the weights belong to another network.
    """
    from torchvision import models
    from torchvision.transforms import Resize

    if model_name == "preactresnet18":
        network: nn.Module = preact_resnet18(num_classes)
    elif model_name in models.list_models(module=models):
        network = models.get_model(model_name, weights=None, num_classes=num_classes)
        if model_name.startswith("vit"):
            resize: Any = Resize((VIT_SIZE, VIT_SIZE))
            network = nn.Sequential(resize, network)
    else:
        raise ValueError(
            f"no network {model_name!r} is known here, only preactresnet18 and torchvision's: "
            "pass network=, a module of the same architecture"
        )
    return network if weights is None else with_weights(network, weights, model_name)


def with_weights(network: nn.Module, weights: Mapping[str, Tensor], model_name: str) -> nn.Module:
    """Load weights into a network, in place, and return the network.

    Raises:
        ValueError: the weights belong to another network.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(
            f"these are not the weights of {model_name!r}: {brief(error)} ..."
        ) from error
    return network
