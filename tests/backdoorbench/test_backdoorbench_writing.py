from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_record import (
    MODEL,
)

from cgd_wrap.backdoorbench import build_network, write_defense_result


def test_a_defence_result_is_plain_and_loads_without_an_allow_list(tmp_path):
    network = build_network(MODEL, 10)
    wrapped = torch.nn.DataParallel(network)
    path = write_defense_result(tmp_path / "defense" / "cgd", MODEL, 10, wrapped.state_dict())
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"model_name", "num_classes", "model"}
    build_network(loaded["model_name"], loaded["num_classes"], loaded["model"])
    for name, value in loaded["model"].items():
        assert torch.equal(value, network.state_dict()[name])
        assert value.device.type == "cpu"
        assert value.min() <= value.max()  # what its reader asks of every tensor


@pytest.mark.parametrize("value", [torch.zeros(0), np.zeros(3), 3.0])
def test_values_that_crash_its_reader_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"\['odd'\]"):
        write_defense_result(tmp_path, MODEL, 10, {"fine": torch.zeros(1), "odd": value})
    assert not (tmp_path / "defense_result.pt").exists()
