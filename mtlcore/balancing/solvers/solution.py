"""What solvers read and return."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.balancing.context import Status

Array = NDArray[np.float64]

CANCELLED = 2.0**-23
"""Vectors cancel where the squared length of a combination b of unit vectors is at most this part
of |b|^2. It is the precision of float32, in which networks are trained: a shorter combination is
rounding, and an answer would be made of it."""

# Relative to the largest eigenvalue of a matrix of cosines, per row: float64's rounding.
_ROUNDING = 2.0**-51


@attrs.frozen(eq=False)
class Solution:
    """Weights, and how they were found.

    Args:
        weights: (K,), of the task gradients in the update; or (2, K), whose second row weighs
            the heads.
        status: "converged" where the problem has one solution and these weights are it to
            rounding; "degenerate" where it has none or several.
    """

    weights: Array
    status: Status = "converged"


def as_gramian(gramian: Tensor) -> Array:
    """Return a Gramian as a symmetric float64 array.

    Products of rows in float32 differ from one half to the other by rounding: their mean is taken.

    Args:
        gramian: (K, K), on any device.

    Raises:
        ValueError: it is not square, or not finite.
    """
    if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1]:
        raise ValueError(f"a Gramian is (K, K), not {tuple(gramian.shape)}")
    products: Array = gramian.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(products).all():
        raise ValueError("the Gramian is not finite")
    symmetric: Array = products / 2 + products.T / 2
    return symmetric


def unit_diagonal(gramian: Array) -> tuple[Array, Array]:
    """Return the cosines between the vectors of a Gramian, and their lengths.

    Cosines beyond 1, which rounding makes, are 1. A vector of zeros has the length 0 and the
    cosine 0 with all others, and 1 with itself.

    Args:
        gramian: (K, K), finite and symmetric.

    Returns:
        (K, K) and (K,).
    """
    norms = np.sqrt(np.maximum(gramian.diagonal(), 0.0))
    divisors = np.where(norms > 0, norms, 1.0)
    cosines: Array = np.minimum(np.maximum(gramian / divisors / divisors[:, None], -1.0), 1.0)
    cosines.flat[:: len(norms) + 1] = 1.0
    return cosines, norms


def above_rounding(values: Array) -> NDArray[np.bool_]:
    """Return which eigenvalues of a matrix of cosines are not zero but for float64's rounding.

    Args:
        values: (K,), in any order.
    """
    kept: NDArray[np.bool_] = values > _ROUNDING * len(values) * max(values.max(initial=0.0), 1.0)
    return kept


def without_zeros(gramian: Array, solve: Callable[[Array], Solution]) -> Solution:
    """Solve for the tasks that have a gradient; the others weigh 0.

    Args:
        gramian: (K, K), finite and symmetric.
        solve: for a Gramian with a positive diagonal, which may be 0 x 0.

    Returns:
        (K,) weights; "degenerate" if a task has no gradient.
    """
    present = gramian.diagonal() > 0
    if present.all():
        return solve(gramian)
    weights = np.zeros(len(gramian))
    weights[present] = solve(gramian[np.ix_(present, present)]).weights
    return Solution(weights, "degenerate")
