"""Random numbers that are the same on every platform: functions of integers and names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix every 64-bit integer of an array (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_uniform(start: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), the sequence of splitmix64 from `start`."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    mixed = hash64(steps + np.uint64(start & _MASK))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def kept_names(names: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Return the share of names that is kept for validation: one at least, and not all.

    The choice goes by a hash of each name, so that one that is added moves few others.
    """
    order = sorted(set(names), key=lambda name: _name_hash(seed, name))
    number = min(max(round(fraction * len(order)), 1), len(order) - 1)
    return set(order[:number])


def _name_hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


class Stream:
    """A stream of random numbers that depends on integer keys alone, on no library."""

    _BLOCK = 256

    def __init__(self, *keys: int) -> None:
        state = np.zeros(1, dtype=np.uint64)
        for key in keys:
            state = hash64((state ^ np.uint64(key & _MASK)) + _GOLDEN)
        self._numbers = self._draw(int(state[0]))

    def _draw(self, state: int) -> Iterator[float]:
        step = int(_GOLDEN) * self._BLOCK
        while True:  # by blocks: one number at a time would cost as much as the ray casting
            yield from hash_uniform(state, self._BLOCK).tolist()
            state += step

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def below(self, bound: int) -> int:
        return int(bound * next(self._numbers))

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability
