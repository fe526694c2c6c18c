"""Bargaining solutions: Newton's method on their potentials, and the limit where there is none.

All is done in coordinates of unit diagonal: with `n_i = |g_i|`, `C_ij = M_ij / (n_i n_j)` holds the
cosines between the task gradients, `b_i = n_i a_i`, and Nash's equation `M a = 1 / a` becomes
`C b = 1 / b`. So no threshold below depends on the scale of any gradient. Cosines beyond 1, which
rounding makes, are 1.
"""

from __future__ import annotations

import math
from operator import mul
from typing import cast

import attrs
import numpy as np

from mtlcore.balancing.solvers.solution import CANCELLED, Array, unit_diagonal

Vector = list[float]
Matrix = list[Vector] | Array

# Largest |b_i (C b)_i - 1|: where to stop, and what still counts as solved.
_EXACT = 1e-14
_SOLVED = 1e-6
_STEPS = 200
# Part of a Newton step below which rounding decides, not the descent.
_SHORTEST = 2.0**-40
# Part of the terms of a sum that its rounding is measured against.
_TERMS = 2.0**-30
# Up to so many tasks plain Python multiplies and solves faster than numpy is called.
_FEW = 6


@attrs.frozen(eq=False)
class Bargain:
    """What the tasks agree on.

    Args:
        weights: (K,), of the task gradients in the update.
        importance: (K,), positive. The weights, where they solve a task's equation; otherwise what
            the task would get alone (`1 / |g_i|` for Nash's), and 1 without a gradient.
        norm: of the update, `sqrt(a' M a)`; for Nash's `sqrt(K)` where all take part.
        solved: whether the equation holds for all tasks.
    """

    weights: Array
    importance: Array
    norm: float
    solved: bool


def bargain(gramian: Array, alpha: float = 1.0) -> Bargain:
    """Return the weights `a > 0` with `(M a)_i = a_i^(-1 / alpha)`, or their limit.

    They maximise alpha-fair utilities of what each task gains (Mo & Walrand 2000); with `alpha = 1`
    that is Nash's bargaining solution. They minimise

        1/2 a' M a - sum_i phi(a_i),    phi'(x) = x^(-1 / alpha),

    whose phi is the logarithm for `alpha = 1`. That has one minimum unless some tasks' gradients
    cancel: `sum_S c_i g_i = 0` with all `c_i > 0` for a set S of tasks, as of opposite gradients.
    (A Gramian that is singular for another reason, such as equal gradients, does no harm.) No
    update improves all tasks of such an S. What they get then is the limit, for e -> 0, of the
    solutions with `C + e I`, in which the update leaves S alone and the other tasks bargain over
    what is orthogonal to all gradients of S:

        d . g_i = 0 for i in S,    d . g_i = a_i^(-1 / alpha) for the others,    d = sum_i a_i g_i.

    On the way there the weights of S grow without bound, but the sum of their gradients does not;
    of all weights that give this d the shortest are returned (in the norm of b). Where S is all
    tasks, weights and update are zero.

    A task whose gradient is zero gets the weight 0 and does not affect the others.

    Args:
        gramian: (K, K), finite and symmetric; entry i, j is `g_i . g_j`.
        alpha: above 0; a larger one favours the tasks that gain least.
    """
    present = gramian.diagonal() > 0
    if not present.all():
        rest = bargain(gramian[np.ix_(present, present)], alpha)
        weights, importance = np.zeros(len(gramian)), np.ones(len(gramian))
        weights[present], importance[present] = rest.weights, rest.importance
        return Bargain(weights, importance, rest.norm, False)
    cosines, norms = unit_diagonal(gramian)
    b = _agree(cosines, norms, alpha)
    if b is not None:
        weights = b / norms
        norm = math.sqrt(float((b * (cosines @ b)).sum()) if alpha != 1 else len(b))
        return Bargain(weights, weights, norm, True)
    scaled, relative = _limit(cosines, norms, alpha)
    norm = math.sqrt(max(float(scaled @ cosines @ scaled), 0.0))
    return Bargain(scaled / norms, relative / norms, norm, False)


def _agree(cosines: Array, norms: Array, alpha: float) -> Array | None:
    """Solve in the coordinates of b; None if gradients cancel.

    The logarithm needs no lengths, and its Newton steps are bounded by self-concordance.
    """
    return minimise(cosines) if alpha == 1 else _minimise_power(cosines, norms, alpha)


def minimise(matrix: Array) -> Array | None:
    """Minimise `1/2 b' C b - sum_i log b_i` over b > 0; return None if gradients cancel.

    Newton's method on steps relative to b: with `A = diag(b) C diag(b)` it solves
    `(A + I) y = 1 - A 1` and goes to `b (1 + t y)`. The function is self-concordant, so that
    `t = 1 / (1 + l)`, `l^2 = y' (A + I) y`, always makes progress; longer steps are tried first.
    Scaling b such that `b' C b = K`, as at the minimum, is a step too, an exact one.

    Args:
        matrix: C, (K, K), positive semidefinite up to rounding, its diagonal about 1.
    """
    count = len(matrix)
    rows: Matrix = matrix.tolist() if count <= _FEW else matrix
    b = [1.0] * count
    best, smallest, near = b, math.inf, False
    for _ in range(_STEPS):
        products = _times(rows, b)
        square = _dot(b, products)
        if square <= CANCELLED * _dot(b, b):
            return None
        scale = count / square
        gap = [1.0 - x * product * scale for x, product in zip(b, products, strict=True)]
        root = math.sqrt(scale)
        b = [x * root for x in b]
        error = max(map(abs, gap))
        stalled = near and error > 0.5 * smallest
        if error < smallest:
            best, smallest = b, error
        if stalled or error <= _EXACT:
            break
        y = _relative_step(rows, b, gap)
        decrement = 0.0 if y is None else _dot(gap, y)
        if y is None or not decrement > 0:  # a negative eigenvalue, and b is large along it
            return None
        near = decrement < 0.05
        length = 1.0 if near else _length(rows, b, y, decrement)
        b = [x * (1.0 + length * slope) for x, slope in zip(b, y, strict=True)]
    return np.array(best) if smallest <= _SOLVED else None


def _length(matrix: Matrix, b: Vector, y: Vector, decrement: float) -> float:
    """Return a step t along y that makes progress, even a full one where that does.

    Values are compared at the best scale of each point: `K / 2 log(b' C b) - sum_i log b_i`.
    """
    count = len(y)
    longest = min(1.0, 0.95 / max(-min(y), 0.95))
    factors = [1.0 + longest * slope for slope in y]
    there = [x * factor for x, factor in zip(b, factors, strict=True)]
    square = _dot(there, _times(matrix, there)) / count
    gain = sum(map(math.log, factors)) - 0.5 * count * math.log(max(square, 1e-300))
    return longest if gain > 0.1 * longest * decrement else 1.0 / (1.0 + math.sqrt(decrement))


def _dot(first: Vector, second: Vector) -> float:
    total: float = sum(map(mul, first, second))
    return total


def _times(matrix: Matrix, b: Vector) -> Vector:
    """`C b`."""
    if isinstance(matrix, list):
        return [_dot(row, b) for row in matrix]
    return cast(Vector, (matrix @ np.array(b)).tolist())


def _relative_step(matrix: Matrix, b: Vector, gap: Vector) -> Vector | None:
    """Return the solution y of `(diag(b) C diag(b) + I) y = gap`; None where there is none."""
    if not isinstance(matrix, list):
        scales = np.array(b)
        system = matrix * scales * scales[:, None]
        system.flat[:: len(b) + 1] += 1.0
        try:
            return cast(Vector, np.linalg.solve(system, np.array(gap)).tolist())
        except np.linalg.LinAlgError:
            return None
    # Cholesky's factor L, row by row; then L z = gap, and L' y = z.
    lower: list[Vector] = []
    z: Vector = []
    for i, (x, row) in enumerate(zip(b, matrix, strict=True)):
        mine: Vector = []
        for j, above in enumerate(lower):
            mine.append((x * row[j] * b[j] - _dot(mine, above)) / above[j])
        square = x * row[i] * x + 1.0 - _dot(mine, mine)
        if not square > 0:
            return None
        root = math.sqrt(square)
        z.append((gap[i] - _dot(mine, z)) / root)
        mine.append(root)
        lower.append(mine)
    y = z
    for i in reversed(range(len(b))):
        y[i] = value = y[i] / lower[i][i]
        for j in range(i):
            y[j] -= lower[i][j] * value
    return y


def _semidefinite(matrix: Array) -> Array:
    """Return the nearest matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values.clip(0.0)) @ vectors.T)


def _minimise_power(cosines: Array, norms: Array, alpha: float) -> Array | None:
    """Minimise `1/2 b' C b - sum_i r_i^2 phi(b_i / r_i)` over b > 0; None if gradients cancel.

    That is the potential of `bargain` with `r_i = n_i^((1 - alpha) / (1 + alpha))`, `b_i = r_i`
    being what each task would get alone. Newton's steps are relative to b, as in `minimise`; they
    are halved until the potential falls, and full ones close to the solution.

    Args:
        cosines: C, (K, K), positive semidefinite up to rounding, its diagonal about 1.
        norms: n, (K,).
        alpha: above 0, and not 1.
    """
    power = 1.0 - 1.0 / alpha
    alone = norms ** ((1.0 - alpha) / (1.0 + alpha))
    squares = alone * alone
    sizes = np.abs(cosines)
    b, best, smallest, near = alone, alone, math.inf, False
    for _ in range(_STEPS):
        products = b * (cosines @ b)
        square, wanted = float(products.sum()), squares * (b / alone) ** power
        if square <= CANCELLED * float(b @ b):
            return None
        scale = (float(wanted.sum()) / square) ** (1.0 / (2.0 - power))
        b, products, wanted = b * scale, products * scale**2, wanted * scale**power
        gap = (wanted - products) / wanted
        # A gain that is small beside the terms that make it up is known as well as these are.
        known = wanted + _TERMS * b * (sizes @ b)
        error = float((np.abs(wanted - products) / known).max())
        stalled = near and error > 0.5 * smallest
        if error < smallest:
            best, smallest = b, error
        if stalled or error <= _EXACT:
            break
        root = np.sqrt(wanted)
        system = cosines * (b / root) * (b / root)[:, None]
        system.flat[:: len(b) + 1] += 1.0 / alpha
        y = np.linalg.solve(system, gap * root) / root
        decrement = float(gap * wanted @ y)
        if not decrement > 0:  # a negative eigenvalue, and b is large along it
            return None
        near = error < 0.1
        length = min(1.0, 0.95 / max(-float(y.min()), 0.95))
        value = 0.5 * float(products.sum()) - float(wanted.sum()) / power
        while not near and length > _SHORTEST:
            there = b * (1.0 + length * y)
            reached = 0.5 * float(there @ cosines @ there)
            reached -= float((squares * (there / alone) ** power).sum()) / power
            if reached <= value - 1e-4 * length * decrement + 1e-14 * abs(value):
                break
            length *= 0.5
        b = b * (1.0 + length * y)
    return best if smallest <= _SOLVED else None


def _limit(cosines: Array, norms: Array, alpha: float) -> tuple[Array, Array]:
    """Weights and importance, in the coordinates of b, where some gradients cancel."""
    count = len(cosines)
    weights, importance = np.zeros(count), norms ** ((1.0 - alpha) / (1.0 + alpha))
    still = np.zeros(count, dtype=bool)  # S, as far as it is known
    while not still.all():
        s, r = np.flatnonzero(still), np.flatnonzero(~still)
        inverse = np.linalg.pinv(cosines[np.ix_(s, s)], rcond=CANCELLED, hermitian=True)
        along = -inverse @ cosines[np.ix_(s, r)]  # weights that take a gradient's part along S away
        left = cosines[np.ix_(r, r)] + cosines[np.ix_(r, s)] @ along
        squares = left.diagonal()
        cancelling = squares <= CANCELLED  # a gradient in the span of S cancels with S
        if not cancelling.any():
            lengths = np.sqrt(squares)
            left = left / lengths / lengths[:, None]
            b = _agree(left, lengths * norms[r], alpha)
            if b is not None:
                importance[r] = weights[r] = b / lengths
                weights[s] = along @ weights[r]
                break
            # Near the limit the weights of S, and only they, are about 1 / sqrt(e).
            e = 2 * CANCELLED
            b = minimise(_semidefinite(left) + e * np.eye(len(r)))
            cancelling = np.ones(len(r), dtype=bool) if b is None else b >= min(e**-0.25, b.max())
        still[r[cancelling]] = True
    return weights, importance
