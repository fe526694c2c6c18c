"""Points of the simplex: the nearest to a given one, and the shortest convex combination."""

from __future__ import annotations

import math

import numpy as np

from mtlcore.balancing.solvers.solution import Array

# Relative to the lengths of the vectors that take part.
_OPTIMAL = 1e-10
_CANCELLED = 1e-14
_RIDGE = 1e-13


def simplex_projection(point: Array) -> Array:
    """Return the point of the simplex (`x >= 0`, `sum x = 1`) that is nearest to a given one.

    It is `max(p - t, 0)` with the t that makes it sum to 1, which sorting finds exactly (Held,
    Wolfe & Crowder 1974).

    Args:
        point: p, (n,), finite; n is at least 1.
    """
    # Shifting all entries changes nothing but the rounding.
    shifted = point - point.max()
    falling = np.sort(shifted)[::-1]
    shifts = (np.cumsum(falling) - 1.0) / np.arange(1, len(point) + 1)
    count = int(np.flatnonzero(falling > shifts)[-1])
    return np.asarray(np.maximum(shifted - shifts[count], 0.0))


def min_norm_point(gramian: Array) -> Array:
    """Minimise `|sum_i x_i v_i|^2` over `x >= 0`, `sum x = 1`, by Wolfe's algorithm (1976).

    It keeps a set of vectors, adds the one with the smallest product with the combination, finds
    the shortest combination of the set, and drops the vectors that this one does not need. The
    combination gets shorter each time, so the algorithm ends, and its result is exact. It begins
    with nearly all of them (`_start`). Vectors of zeros share the weight 1 equally, if there are
    any.

    Args:
        gramian: (n, n), finite and symmetric; entry i, j is `v_i . v_j`.

    Returns:
        x, (n,).
    """
    squares = gramian.diagonal()
    zero = squares <= 0
    if zero.any():
        return np.asarray(zero / zero.sum(), np.float64)
    norms = np.sqrt(squares)
    cosines: Array = gramian / norms / norms[:, None]
    shorter, chosen = _start(gramian, cosines, norms)
    x, least = np.zeros(len(gramian)), math.inf
    while True:
        slopes = gramian @ shorter
        value = float(shorter @ slopes)
        if value >= least:  # by rounding
            return x
        x, least = shorter, value
        if value <= _CANCELLED * float(x @ norms) ** 2:
            return x
        gaps = (value - slopes) / norms
        gaps[chosen] = 0.0
        new = int(gaps.argmax())
        if gaps[new] <= _OPTIMAL * math.sqrt(value):
            return x
        shorter, chosen = _reduced(cosines, norms, x, [*chosen, new])


def _start(gramian: Array, cosines: Array, norms: Array) -> tuple[Array, list[int]]:
    """Return a combination to begin with, the shortest of a set, and the set.

    All vectors but those that are not needed, which is nearly always near the answer; the shortest
    vector where these depend on one another so much that their combination is not exact.
    """
    chosen = np.arange(len(gramian))
    while (y := _shortest(cosines[np.ix_(chosen, chosen)], norms[chosen])).min() < 0:
        chosen = chosen[y > 0]
    x = np.zeros(len(gramian))
    x[chosen] = y
    slopes = gramian @ x
    value = float(x @ slopes)
    if value > _CANCELLED * float(x @ norms) ** 2:
        off = np.abs((slopes - value) / norms)[chosen].max()
        if off <= _OPTIMAL * math.sqrt(value):
            return x, chosen.tolist()
    x[:] = 0.0
    shortest = int(gramian.diagonal().argmin())
    x[shortest] = 1.0
    return x, [shortest]


def _shortest(cosines: Array, norms: Array) -> Array:
    """Return the weights, of sum 1 and any sign, of the shortest combination of vectors."""
    system = cosines + _RIDGE * np.eye(len(norms))
    y = np.linalg.solve(system, 1 / norms) / norms
    return np.asarray(y / y.sum())


def _reduced(cosines: Array, norms: Array, x: Array, chosen: list[int]) -> tuple[Array, list[int]]:
    """Return the shortest combination of those chosen from x on, and which of them it needs."""
    while True:
        y = _shortest(cosines[np.ix_(chosen, chosen)], norms[chosen])
        result = np.zeros_like(x)
        falling = y < 0
        if not falling.any():
            result[chosen] = y
            return result, chosen
        # As far towards it as nothing becomes negative; what gets to zero is not needed.
        before = x[chosen]
        steps = np.where(falling, before / np.where(falling, before - y, 1.0), np.inf)
        reached = before + steps.min() * (y - before)
        reached[steps.argmin()] = 0.0
        needed = reached > 0
        result[chosen] = np.where(needed, reached, 0.0)
        x, chosen = result, [i for i, kept in zip(chosen, needed, strict=True) if kept]
