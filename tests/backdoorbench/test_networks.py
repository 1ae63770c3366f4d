from __future__ import annotations

import pytest
import torch

from cgd_wrap.backdoorbench import build_network


def test_preact_resnet18_has_the_checkpoints_names_and_size():
    network = build_network("preactresnet18", 10)
    names = set(network.state_dict())
    assert {"conv1.weight", "layer1.0.bn1.weight", "layer4.1.conv2.weight"} <= names
    assert {"layer2.0.shortcut.0.weight", "linear.weight", "linear.bias"} <= names
    assert "layer1.0.shortcut.0.weight" not in names
    assert sum(p.numel() for p in network.parameters()) == 11_171_146
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vision_transformers_hold_their_resize_first():
    assert all(name.startswith("1.") for name in build_network("vit_b_16", 10).state_dict())


def test_unknown_networks_and_foreign_weights_are_refused():
    with pytest.raises(ValueError, match="no network 'my_net' is known"):
        build_network("my_net", 10)
    with pytest.raises(ValueError, match="these are not the weights of 'squeezenet1_0'"):
        build_network("squeezenet1_0", 10, {"conv1.weight": torch.zeros(1)})
