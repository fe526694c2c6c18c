"""Projections onto the cone of the directions that no task's gradient opposes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlcore.balancing.context import Status
from mtlcore.balancing.solvers.solution import Array, Solution, unit_diagonal

# Smallest cosine with a target's projection that counts as opposing it.
_OPPOSED = 1e-14
# Keeps what is solved for dependent gradients from being singular; cosines are that exact.
_RIDGE = 1e-15
# Largest cosine by which an answer may still oppose a gradient.
_SOLVED = 1e-6
# How often a block exchange may leave no less wrong than before.
_TRIES = 3
# Largest multiplier of a unit target that a block exchange is trusted with.
_LARGE = 1e6
# Of active sets per gradient, far above what is ever needed: rounding must not turn in circles.
_ROUNDS = 20


def cone_projection(gramian: Array, targets: Array) -> Solution:
    """Project combinations of gradients onto the cone `{d : d . g_i >= 0 for all i}`.

    For a target `sum_i u_i g_i`, the nearest point of the cone is `sum_i v_i g_i` where

        v minimises v' M v over v >= u,

    the dual of the projection. The multipliers `t = v - u` are found for all targets at once: by
    exchanging all that is wrong about the set of positive ones (block principal pivoting, Judice &
    Pires 1994), and, where that turns in circles or gradients nearly depend on one another, by
    active sets (Lawson & Hanson 1974). Gradients that depend on one another may leave v open; the
    projection they give is unique.

    A gradient of zeros restricts nothing: its weight is its u.

    Args:
        gramian: M, (K, K), finite and symmetric; entry i, j is `g_i . g_j`.
        targets: (n, K), a target's u in each row.

    Returns:
        (n, K): the v of each target, at least its u; "degenerate" where rounding left one that
        opposes a gradient by a cosine above 1e-6 of the target's.
    """
    cosines, norms = unit_diagonal(gramian)
    scaled = targets * norms
    lengths = np.sqrt(np.maximum(((scaled @ cosines) * scaled).sum(axis=1), 0.0))
    factors = np.where(lengths > 0, lengths, 1.0)[:, None]
    products = scaled @ cosines / factors  # of each target of length 1 with the unit gradients
    products[:, norms == 0] = 0.0
    multipliers = _multipliers(cosines, products)
    gaps = np.minimum(products + multipliers @ cosines, 0.0)
    status: Status = "converged" if gaps.min(initial=0.0) >= -_SOLVED else "degenerate"
    divisors = np.where(norms > 0, norms, 1.0)
    return Solution(targets + multipliers * factors / divisors, status)


def _multipliers(cosines: Array, products: Array) -> Array:
    """Solve `t >= 0`, `C t + p >= 0`, `t' (C t + p) = 0` for each row p."""
    result = np.zeros_like(products)
    todo = np.flatnonzero(products.min(axis=1, initial=0.0) < -_OPPOSED)
    t, solved = _by_blocks(cosines, products[todo])
    result[todo[solved]] = t[solved]
    rest = todo[~solved]
    if len(rest):
        result[rest] = _by_active_sets(cosines, products[rest])
    return result


def _by_blocks(cosines: Array, products: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return solutions of `_multipliers`, and for which rows they are solutions."""
    count = len(cosines)
    result, solved = np.zeros_like(products), np.zeros(len(products), dtype=bool)
    identity = np.eye(count)
    ridged = cosines + _RIDGE * count * identity
    todo, p = np.arange(len(products)), products
    chosen = p < -_OPPOSED
    fewest, tries = np.full(len(p), count + 1), np.full(len(p), _TRIES)
    while len(todo):
        system = np.where(chosen[:, :, None] & chosen[:, None, :], ridged, identity)
        t = np.linalg.solve(system, np.where(chosen, -p, 0.0)[:, :, None])[:, :, 0]
        opposed = p + t @ cosines < -_OPPOSED * (1.0 + np.abs(t).sum(axis=1))[:, None]
        wrong = np.where(chosen, t < 0.0, opposed)
        number = wrong.sum(axis=1)
        done = (number == 0) & (t.max(axis=1, initial=0.0) < _LARGE)
        result[todo[done]], solved[todo[done]] = t[done], True
        tries = np.where(number < fewest, _TRIES, tries - 1)
        fewest = np.minimum(number, fewest)
        left = (number > 0) & (tries >= 0)
        todo, p, fewest, tries = todo[left], p[left], fewest[left], tries[left]
        chosen = (chosen ^ wrong)[left]
    return result, solved


def _by_active_sets(cosines: Array, products: Array) -> Array:
    """Return the solutions of `_multipliers`, one change of the set of positive ones at a time."""
    count = len(cosines)
    result = np.zeros_like(products)
    todo, p = np.arange(len(products)), products
    t = np.zeros((len(todo), count))
    chosen = np.zeros(t.shape, dtype=bool)
    refused = np.zeros(t.shape, dtype=bool)  # rounding only makes them look opposed
    newest = p.argmin(axis=1)
    chosen[np.arange(len(todo)), newest] = True
    identity = np.eye(count)
    ridged = cosines + _RIDGE * count * identity
    for _ in range(_ROUNDS * count):
        if not len(todo):
            break
        system = np.where(chosen[:, :, None] & chosen[:, None, :], ridged, identity)
        y = np.linalg.solve(system, np.where(chosen, -p, 0.0)[:, :, None])[:, :, 0]
        negative = chosen & (y <= 0)
        inside = ~negative.any(axis=1)
        # As far towards y as nothing becomes negative; what gets to zero leaves.
        falls = np.where(negative, t - y, 1.0)
        steps = np.where(negative, t / np.where(falls > 0, falls, 1.0), np.inf).min(axis=1)
        steps = np.where(inside, 1.0, steps)[:, None]
        t = np.where(chosen, t + steps * (y - t), 0.0)
        leaving = negative & (t <= 1e-15 * np.abs(t).max(axis=1, initial=0.0)[:, None])
        rows = np.arange(len(todo))
        refused[rows, newest] |= leaving[rows, newest]
        chosen &= ~leaving
        t[~chosen] = 0.0
        slopes = np.where(chosen | refused, 0.0, p + t @ cosines)
        newest = np.where(inside, slopes.argmin(axis=1), newest)
        opposed = slopes[rows, newest] < -_OPPOSED * (1.0 + t.sum(axis=1))
        adding = inside & opposed
        chosen[rows[adding], newest[adding]] = True
        refused[rows[adding]] = False
        done = inside & ~opposed
        if done.any():
            result[todo[done]] = t[done]
            left = ~done
            todo, t, p, newest = todo[left], t[left], p[left], newest[left]
            chosen, refused = chosen[left], refused[left]
    result[todo] = t
    return result
