from __future__ import annotations

import torch
from torch import Tensor

from cgd_wrap.scan.store import UNIT_SIZE, UnitStore
from cgd_wrap.scan.stored_logits import (
    CombinedLogits,
    StoredLogits,
    bad_samples,
    members_of,
    stored_logits,
)


def store_of(folder, logits: Tensor, bad: dict[int, list[str | None]]) -> StoredLogits:
    store = UnitStore.open(folder, len(logits), {})
    for unit in range(len(store)):
        rows = store.rows_of(unit)
        here = {index: why for index, why in bad.items() if index in rows}
        store.write(unit, {"logits": logits[rows.start : rows.stop]}, here)
    return StoredLogits(store, stored_logits)


def test_combined_logits_are_the_mean_of_log_softmaxes_unit_by_unit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    first, second = 5 * torch.randn(2, UNIT_SIZE + 50, 4, generator=generator)
    bad = [{3: ["empty", "a", None]}, {3: ["nonfinite", "b", None], 1030: ["nonfinite", "c", None]}]
    members = [
        store_of(tmp_path / str(i), logits, bad[i]) for i, logits in enumerate((first, second))
    ]
    combined = CombinedLogits.of(members)
    expected = (first.log_softmax(1) + second.log_softmax(1)) / 2
    units = list(combined.units())
    assert [rows for rows, _, _ in units] == [range(UNIT_SIZE), range(UNIT_SIZE, UNIT_SIZE + 50)]
    torch.testing.assert_close(torch.cat([values for _, values, _ in units]), expected)
    assert [bad_here for *_, bad_here in units] == [bad[0], {1030: bad[1][1030]}]
    wanted = torch.tensor([0, 1023, 1024, 1073])
    torch.testing.assert_close(combined.rows(wanted), expected[wanted])
    assert list(bad_samples(combined)) == [3, 1030]
    assert members_of(combined) == tuple(members)


def test_one_pass_stays_as_it_is(tmp_path):
    alone = store_of(tmp_path, torch.zeros(5, 2), {})
    assert CombinedLogits.of([alone]) is alone
    assert members_of(alone) == (alone,)
