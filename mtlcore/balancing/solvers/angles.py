"""The combination of vectors that has the same angle with each of them."""

from __future__ import annotations

import numpy as np

from mtlcore.balancing.solvers.solution import Array, Solution, above_rounding

# Largest |(C b)_i - 1| at which the angles are equal: the square root of float64's rounding,
# because the longest b are those of almost parallel vectors, whose C has a condition of 1e12.
_EQUAL = 2.0**-26


def equal_angles(cosines: Array) -> Solution:
    """Solve `C b = 1`: the combination of unit vectors with the same product with each of them.

    With `u = sum_i b_i e_i`, `u . e_i = 1` for all i and `|u|^2 = sum b`. Where vectors depend on
    one another, the shortest of all b is returned. There may be none: no combination has equal
    products but 0 with vectors such as opposite ones. Then b is the pseudo-inverse's, whose u has
    products as close to 1 as can be (least squares), and the status is "degenerate".

    Args:
        cosines: C, (K, K), of unit diagonal.

    Returns:
        b, (K,); its entries may be negative, their sum is not.
    """
    values, vectors = np.linalg.eigh(cosines)
    kept = above_rounding(values)
    basis = vectors[:, kept]
    b: Array = basis @ ((basis.sum(axis=0)) / values[kept])
    gap = float(np.abs(cosines @ b - 1.0).max(initial=0.0))
    return Solution(b, "converged" if gap <= _EQUAL else "degenerate")
