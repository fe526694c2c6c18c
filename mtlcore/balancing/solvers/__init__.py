"""Mathematics that balancers of Gramians share: small problems, solved to rounding.

All work in float64 on the K x K matrix of inner products, a Gramian, whatever the size of the
network. They scale it to unit diagonal first, so that their thresholds are angles between
gradients and no scale of a loss is special. None has randomness or a state.

Where a problem has no solution, or more than one, the answer is the one that the docstring names,
and its `status` is "degenerate": nothing turns into the plain sum of the gradients unannounced.
`SolvedBalancer` makes a balancer of such a function.
"""

from mtlcore.balancing.solvers.angles import equal_angles
from mtlcore.balancing.solvers.bargaining import Bargain, bargain
from mtlcore.balancing.solvers.cone import cone_projection
from mtlcore.balancing.solvers.simplex import min_norm_point, simplex_projection
from mtlcore.balancing.solvers.solution import (
    CANCELLED,
    Array,
    Solution,
    above_rounding,
    as_gramian,
    unit_diagonal,
    without_zeros,
)

__all__ = [
    "CANCELLED",
    "Array",
    "Bargain",
    "Solution",
    "above_rounding",
    "as_gramian",
    "bargain",
    "cone_projection",
    "equal_angles",
    "min_norm_point",
    "simplex_projection",
    "unit_diagonal",
    "without_zeros",
]
