from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cgd_wrap.train.keyed import keys
from cgd_wrap.train.order import ORDER_KEYS, WINDOW, Order

COUNT = st.integers(0, 100)


def order_of(balanced: int, others: int, seed: int = 0) -> Order:
    return Order(balanced, others, keys(seed, count=ORDER_KEYS))


@given(COUNT, COUNT, st.integers(0, 50))
def test_an_order_has_each_slot_once_and_any_part_of_it_is_the_same(balanced, others, seed):
    order, size = order_of(balanced, others, seed), balanced + others
    slots = order.slots(np.arange(size))
    assert sorted(slots) == list(range(size))
    some = np.random.default_rng(seed).integers(0, max(size, 1), min(size, 7))
    assert np.array_equal(order.slots(some), slots[some])


@given(COUNT, COUNT, st.integers(0, 50))
def test_the_others_of_a_window_are_found_and_are_spread_evenly(balanced, others, seed):
    order, size = order_of(balanced, others, seed), balanced + others
    slots, windows = order.slots(np.arange(size)), np.arange(-(-size // WINDOW))
    for window, row in zip(windows, order.others_in(windows), strict=True):
        held = slots[window * WINDOW : (window + 1) * WINDOW]
        assert set(row[row >= 0]) == set(held[held >= balanced])
        assert abs((row >= 0).sum() - len(held) * others / size) < 1


def test_every_place_of_a_window_holds_others_as_often():
    counts = np.zeros(WINDOW)
    for seed in range(400):
        counts += order_of(192, 64, seed).slots(np.arange(WINDOW)) >= 192
    assert counts.mean() == 100  # 8 of 32
    assert counts.std() < 20  # binomial: 8.7


def test_neighbours_change_with_the_keys():
    orders = {tuple(order_of(20, 10, seed).slots(np.arange(30))) for seed in range(20)}
    assert len(orders) == 20
