"""Projections onto the cone of the directions that no task's gradient opposes."""

from __future__ import annotations

import numpy as np

from mtlcore.balancing.context import Status
from mtlcore.balancing.solvers.solution import Array, Solution, unit_diagonal

# Smallest cosine with a target's projection that counts as opposing it.
_OPPOSED = 1e-14
# Keeps what is solved for dependent gradients from being singular; cosines are that exact.
_RIDGE = 1e-15
# Largest cosine by which an answer may still oppose a gradient.
_SOLVED = 1e-6
# Of active sets per gradient, far above what is ever needed: rounding must not turn in circles.
_ROUNDS = 20


def cone_projection(gramian: Array, targets: Array) -> Solution:
    """Project combinations of gradients onto the cone `{d : d . g_i >= 0 for all i}`.

    For a target `sum_i u_i g_i`, the nearest point of the cone is `sum_i v_i g_i` where

        v minimises v' M v over v >= u,

    the dual of the projection. The multipliers `t = v - u` are found by active sets (Lawson &
    Hanson 1974), for all targets at once. Gradients that depend on one another may leave v open;
    the projection they give is unique.

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
    """Solve `t >= 0`, `C t + p >= 0`, `t' (C t + p) = 0` for each row p, by active sets."""
    count = len(cosines)
    result = np.zeros_like(products)
    todo = np.flatnonzero(products.min(axis=1, initial=0.0) < -_OPPOSED)
    t, p = np.zeros((len(todo), count)), products[todo]
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
