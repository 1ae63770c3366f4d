"""A linear model under the guarded loss, on one process or two.

Apart from the tests, as each new process imports it: that takes seconds with all that they import.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from launching import leave
from tiny_data import TABLE_CLASSES, TABLE_SIZE, made_up_table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cgd_wrap import CGDConfig, CGDLoss
from cgd_wrap.train.batch_checks import BatchChecks
from cgd_wrap.train.loss import clean_share
from cgd_wrap.train.sampler import EpochIndices
from cgd_wrap.train.tags import TAG

FEATURES = 6
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25])
SMOOTHED = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)
# Sixteen samples: evenly dealt, by kind, and with the triggered ones all in the first half.
ORDERS = {
    "dealt": [0, 12, 1, 13, 2, 14, 3, 20, 4, 15, 5, 16, 6, 21, 7, 22],
    "by kind": [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 20, 21],
    "second half mixed": [0, 1, 2, 12, 13, 14, 15, 16, 20, 21, 22, 23, 20, 21, 22, 23],
    "second half clean": [12, 13, 14, 15, 16, 17, 18, 19, 0, 1, 2, 3, 4, 5, 6, 7],
}


def loss_of(criterion: Any = None, **changes: Any) -> CGDLoss:
    table = made_up_table()
    share = clean_share(table, torch.arange(TABLE_SIZE))
    return CGDLoss(table, share, CGDConfig(**changes), criterion)


def inputs(size: int = TABLE_SIZE) -> Tensor:
    return torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(1))


def linear() -> nn.Linear:
    net = nn.Linear(FEATURES, TABLE_CLASSES)
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net


def alarm() -> bool:
    """Whether batches are taken for another sampler's, where the guard's hasn't been asked."""
    index = torch.arange(TABLE_SIZE)
    checks = BatchChecks(
        strict=True, epochs=EpochIndices(index % 3, index < 12, (index > 11).long())
    )
    try:
        for batch in index.split(4):
            checks.look(batch + TAG)
    except ValueError:
        return True
    return False


def main(folder: str) -> None:
    """What each of torchrun's two processes does; both store the synchronised gradients."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 0:  # would wait for the other one for ever if it asked for its counts
        with torch.no_grad():
            loss_of(normalise_by="batch")(linear()(inputs()), torch.arange(TABLE_SIZE) + TAG)
    found = {}
    for order, index in ORDERS.items():
        for normalise_by in ("batch", "expectation"):
            for weighted in (False, True):
                criterion = SMOOTHED if weighted else None
                net = DistributedDataParallel(linear())
                mine = torch.tensor(index).chunk(2)[rank]
                outputs = net(inputs(16).chunk(2)[rank])
                loss_of(criterion, normalise_by=normalise_by)(outputs, mine + TAG).backward()
                flat = torch.cat([p.grad.flatten() for p in net.parameters()])
                found[order, normalise_by, weighted] = flat
    torch.save({"gradients": found, "alarm": alarm()}, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer has left
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
