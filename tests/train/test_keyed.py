from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd_wrap.train.keyed import ROUNDS, below, bits, keys, permuted, uniform

KEY = keys(0, count=1)[0]


def order(size: int, *entropy: int) -> list[int]:
    return permuted(np.arange(size), size, keys(*entropy, count=ROUNDS)).tolist()


@given(st.integers(0, 3000), st.integers(0, 2**63), st.integers(0, 1000))
@settings(max_examples=60)
def test_an_order_holds_every_place_once(size, seed, epoch):
    assert sorted(order(size, seed, epoch)) == list(range(size))


@given(st.integers(1, 10**12), st.data())
@settings(max_examples=40)
def test_any_part_of_an_order_can_be_had_without_the_rest(size, data):
    """Up to sizes that no list could hold."""
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    some = keys(3, count=ROUNDS)
    together = permuted(np.array(places), size, some)
    assert ((together >= 0) & (together < size)).all()
    alone = [int(permuted(np.array([place]), size, some)[0]) for place in places]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(places))


@pytest.mark.parametrize("size", [3, 4])
def test_all_orders_of_few_places_are_about_as_frequent(size):
    tries = 1200
    found = Counter(tuple(order(size, seed)) for seed in range(tries))
    kinds = list(permutations(range(size)))
    expected = tries / len(kinds)
    deviation = sum((found[kind] - expected) ** 2 / expected for kind in kinds)
    assert deviation < 2.5 * (len(kinds) - 1)  # of mean 1 (len(kinds) - 1) for even orders


def test_neighbours_do_not_stay_together_and_no_place_is_preferred():
    size = 1000
    found = np.array([order(size, seed) for seed in range(200)])
    steps = np.diff(found, axis=1)
    assert (abs(steps) == 1).mean() == pytest.approx(2 / size, rel=0.15)
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(found.mean(axis=0) - (size - 1) / 2).max() < 5 * size / np.sqrt(12 * 200)


def test_keys_that_differ_in_one_number_give_unlike_orders():
    assert len({tuple(order(60, seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert order(60, 0, 1) != order(60, 1, 0)


def test_numbers_are_those_of_splitmix64():
    """The first numbers of the reference implementation with the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert bits(np.arange(1, 4), np.uint64(1234567)).tolist() == known


def test_numbers_are_even_over_their_range():
    places = np.arange(100_000)
    numbers = uniform(places, KEY)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = np.bincount(below(places, KEY, 7), minlength=7)
    assert len(counts) == 7
    assert counts.min() > 0.97 * len(places) / 7


@given(st.lists(st.integers(1, 2**32), min_size=1, max_size=30))
def test_each_number_keeps_to_its_own_limit(limits):
    found = below(np.arange(len(limits)), KEY, np.array(limits))
    assert ((found >= 0) & (found < np.array(limits))).all()
