from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.functional import class_draws
from cgd_wrap.train.keyed import keys
from cgd_wrap.train.slots import Slots

FIRST, SECOND = keys(0, count=2)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), max_size=60),
    st.sampled_from([None, 1.0, 1.5]),
)
def test_each_sample_has_the_slots_that_it_is_due(rows, growth):
    labels, clean, times = (
        torch.tensor([row[part] for row in rows], dtype=kind)
        for part, kind in enumerate((torch.int64, torch.bool, torch.int64))
    )
    slots = Slots.of(labels, clean, times, growth)
    found = torch.from_numpy(slots.samples(np.arange(len(slots)), FIRST))
    balanced, others = found[: slots.balanced], found[slots.balanced :]
    draws = class_draws(torch.bincount(labels[clean]), growth)
    assert torch.equal(torch.bincount(labels[balanced], minlength=len(draws)), draws)
    assert set(balanced.tolist()) == set(clean.nonzero().flatten().tolist())
    assert torch.equal(torch.bincount(others, minlength=len(rows)), times)


def test_slots_that_are_left_are_filled_anew_and_evenly():
    labels = torch.tensor([0] * 10_000 + [1] * 4)
    clean = torch.ones_like(labels, dtype=torch.bool)
    slots = Slots.of(labels, clean, torch.zeros_like(labels), None)
    left = np.arange(10_004, 20_000)
    first, second = (slots.samples(left, key) for key in (FIRST, SECOND))
    assert np.bincount(first - 10_000, minlength=4).min() > 2300
    assert (first == second).mean() < 0.3
    kept = np.arange(10_004)
    assert slots.samples(kept, FIRST).tolist() == kept.tolist()
    assert slots.samples(left[::-3], FIRST).tolist() == first[::-3].tolist()
