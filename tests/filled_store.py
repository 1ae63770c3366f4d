"""A small store, all of whose units are written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cgd_wrap.scan.store import UNIT_SIZE, UnitStore

ROWS = 2 * UNIT_SIZE + 5
PRINT = {"dataset": "d1", "model": {"name": "m", "layers": [1, 2]}}


def values(store: UnitStore, unit: int) -> dict[str, Tensor]:
    return {"logits": torch.arange(len(store.rows_of(unit)) * 3.0).reshape(-1, 3) + unit}


def filled(folder: Path) -> UnitStore:
    store = UnitStore.open(folder, ROWS, PRINT)
    for unit in range(len(store)):
        store.write(unit, values(store, unit), {})
    return store
