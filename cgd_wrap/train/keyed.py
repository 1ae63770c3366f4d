"""Random numbers and random orders, each part of which can be had without the rest.

A key and a place decide a number: the place is the counter of SplitMix64 (Steele, Lea and Flood,
"Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), the key where the counter starts. So
an epoch of any length begins at once, and goes on anywhere, the same on every machine.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 12  # of a Feistel network; with 8, orders of 5 places are visibly uneven
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # step of SplitMix64's counter
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


def keys(*entropy: int, count: int) -> list[np.uint64]:
    """Make keys of whole numbers from 0, such as a seed and an epoch; all are independent."""
    return list(np.random.SeedSequence(entropy).generate_state(count, np.uint64))


def bits(places: np.ndarray, key: np.uint64) -> np.ndarray:
    """A number of 64 random bits for each place, uint64."""
    mixed = places.astype(np.uint64)
    mixed *= GOLDEN
    mixed += key
    mixed ^= mixed >> np.uint64(30)
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def uniform(places: np.ndarray, key: np.uint64) -> np.ndarray:
    """A random number in [0, 1) for each place, float64."""
    return (bits(places, key) >> np.uint64(11)) * 2.0**-53


def below(places: np.ndarray, key: np.uint64, limit: int | np.ndarray) -> np.ndarray:
    """A random whole number in [0, limit) for each place, int64; the limit is at most 2^32."""
    found = bits(places, key) >> _HALF
    found *= np.asarray(limit, dtype=np.uint64)
    found >>= _HALF
    return found.view(np.int64)


def permuted(places: np.ndarray, size: int, round_keys: list[np.uint64]) -> np.ndarray:
    """Where a random order of ``size`` places puts each of the given places, int64.

    Places are cells of a rectangle that is hardly larger. A Feistel network with a key a round
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002) shifts the columns by
    random numbers of the rows, then the rows by those of the columns, and so on. Places that leave
    the order are put again, until they are back.

    Args:
        places: whole numbers in ``[0, size)``.
        size: number of places in all, up to 2^62.
        round_keys: an even number of keys, such as ROUNDS.
    """
    width = math.isqrt(max(size - 1, 0)) + 1
    height = -(-size // width)
    found = _put(np.asarray(places, dtype=np.int64), width, height, round_keys)
    outside = (found >= size).nonzero()[0]
    while len(outside):
        found[outside] = moved = _put(found[outside], width, height, round_keys)
        outside = outside[moved >= size]
    return found


def _put(places: np.ndarray, width: int, height: int, round_keys: list[np.uint64]) -> np.ndarray:
    """Where a Feistel network puts the cells of a rectangle, each to a cell of its own."""
    moving, other = np.divmod(places, width)
    limit, others_limit = height, width
    for key in round_keys:
        moving, other, limit, others_limit = other, moving, others_limit, limit
        moving += below(other, key, limit)
        moving -= limit * (moving >= limit)
    return moving * width + other
