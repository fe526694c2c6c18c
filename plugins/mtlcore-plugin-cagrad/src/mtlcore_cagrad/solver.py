"""The dual problem of CAGrad, by active sets."""

from __future__ import annotations

import math

import numpy as np

from mtlcore.balancing.solvers import CANCELLED, Array, unit_diagonal

# How much the smallest gain may differ from the dual value, relative to the gradients' lengths.
_OPTIMAL = 1e-11
_SOLVED = 1e-6
# Squared length, relative to |y|^2, of a combination on the way that is as good as zero.
_ZERO = 1e-14
_RIDGE = 1e-14
# Of active sets per task, far above what is ever needed: rounding must not turn in circles.
_ROUNDS = 50


def worst_case(gramian: Array, average: Array, radius: float) -> tuple[Array, float] | None:
    """Minimise `w' M b + r |sum_i w_i g_i|` over `w >= 0`, `sum w = 1`.

    Active sets as in Wolfe's algorithm: the set gets the task that gains least, w goes to the
    minimum of the set's affine hull, which has a closed form, and tasks whose weight gets to zero
    on the way there leave. Where the affine hull has no minimum, some task leaves on the way down.

    Args:
        gramian: M, (K, K), finite and symmetric, with a positive diagonal.
        average: b, (K,), of the gradient `g_0 = sum_i b_i g_i` that the update stays close to.
        radius: r, above 0, of the ball around it.

    Returns:
        w, (K,), and the value; None where the minimum is at a combination that is zero, where the
        objective has a kink.
    """
    cosines, norms = unit_diagonal(gramian)
    inverse = 1.0 / norms
    along = cosines @ (average * norms)  # e_i . g_0
    scale = math.sqrt(max(float(average @ gramian @ average), 0.0)) + radius
    chosen = [int(((along + radius) * norms).argmin())]
    y = np.zeros(len(norms))  # weights of the unit gradients, w_i n_i
    y[chosen] = norms[chosen]
    for _ in range(_ROUNDS * len(norms)):
        length = math.sqrt(max(float(y @ cosines @ y), 0.0))
        square = float(y @ y)
        if length**2 <= _ZERO * square:
            return None
        gains = along + radius / length * (cosines @ y)  # e_i . d
        value = float(y @ gains)
        gaps = value * inverse - gains
        sizes = scale + abs(value) * inverse
        new = int((gaps / sizes).argmax())
        if gaps[new] <= _OPTIMAL * sizes[new]:
            return (y * inverse, value) if length**2 > CANCELLED * square else None
        y, chosen = _towards_minimum(cosines, inverse, along, radius, y, [*chosen, new])
        reached = float(y @ along) + radius * math.sqrt(max(float(y @ cosines @ y), 0.0))
        if reached >= value:  # by rounding
            return (y * inverse, value) if gaps[new] <= _SOLVED * sizes[new] else None
    return None


def _towards_minimum(
    cosines: Array,
    inverse: Array,
    along: Array,
    radius: float,
    y: Array,
    chosen: list[int],
) -> tuple[Array, list[int]]:
    """Return y nearer to the minimum on the affine hull of those chosen, and who is left."""
    while True:
        system = cosines[np.ix_(chosen, chosen)] + _RIDGE * np.eye(len(chosen))
        ones, p = inverse[chosen], along[chosen]
        u, v = np.linalg.solve(system, np.stack([ones, p], axis=1)).T
        a, b, c = float(ones @ u), float(ones @ v), float(p @ v)
        square = a * (radius**2 - c) + b * b
        before, result = y[chosen], np.zeros_like(y)
        if square > 0:
            root = math.sqrt(square)
            there = ((root + b) / a * u - v) / root
            if (there >= 0).all():
                result[chosen] = there
                return result, chosen
            direction = there - before
        else:  # no minimum: the objective falls all along the steepest direction far out
            direction = b / a * u - v
        # As far as nothing becomes negative; what gets to zero is not needed.
        falling = direction < 0
        steps = np.where(falling, before / np.where(falling, -direction, 1.0), np.inf)
        reached = before + steps.min() * direction
        reached[steps.argmin()] = 0.0
        needed = reached > 0
        result[chosen] = np.where(needed, reached, 0.0)
        y, chosen = result, [i for i, kept in zip(chosen, needed, strict=True) if kept]
