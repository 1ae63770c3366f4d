"""``guard.fit`` on two processes, cut off and gone on with; it checks itself.

torchrun --nproc_per_node 2 interrupted_fit.py FOLDER

Apart from the tests, as each new process imports it: that takes seconds with all that they import.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from launching import leave
from tiny_data import NAMES, TintReader, quick_config, tensors, tiny_net
from torch import nn

from cgd_wrap import CGDGuard, TrainingDivergedError


def guard_of(cache: Path) -> CGDGuard:
    """Of a network with dropout, which draws from each process' own stream."""
    net = tiny_net()
    net.insert(5, nn.Dropout(0.3))
    guard = CGDGuard(
        net, tensors(120), NAMES, clip=TintReader(), cache_dir=cache, suspicious=tiny_net(3),
        config=quick_config(epochs=4, batch_size=24), accelerator=Accelerator(cpu=True),
        progress=False,
    ).scan()  # fmt: skip
    torch.manual_seed(7 + guard.accelerator.process_index)
    return guard


def stop_at(step: int, guard: CGDGuard, error: type[Exception] | None) -> None:
    """At a step of the training, raise an error, or spoil the loss of the main process alone."""
    left = [step]

    def spoil(module, inputs, output):
        left[0] -= module.training
        if module.training and left[0] == 0:
            if error:
                raise error
            return output * (float("nan") if guard.accelerator.is_main_process else 1.0)
        return output

    guard.model.register_forward_hook(spoil)


def main(folder: str) -> None:
    """A whole fit, one that is cut off and gone on with, and one that diverges."""
    whole = guard_of(Path(folder, "whole"))
    expected = whole.fit()
    cut = guard_of(Path(folder, "cut"))
    stop_at(2 * 6 + 2, cut, InterruptedError)
    with pytest.raises(InterruptedError):
        cut.fit()
    assert Path(folder, "cut", "fit", "checkpoint.safetensors").is_file()
    again = guard_of(Path(folder, "cut"))
    seen: list[int] = []
    history = again.fit(on_epoch=lambda record, model: seen.append(record.epoch))
    assert seen == [3, 4], seen
    assert [record.loss for record in history] == [record.loss for record in expected]
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    spoilt = guard_of(Path(folder, "spoilt"))
    before = [parameter.clone() for parameter in spoilt.model.parameters()]
    stop_at(2, spoilt, None)
    with pytest.raises(TrainingDivergedError) as found:
        spoilt.fit()
    assert (found.value.step, found.value.epoch) == (2, 1)
    assert all(map(torch.equal, before, spoilt.model.parameters()))
    print(f"process {spoilt.accelerator.process_index} has passed")


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
