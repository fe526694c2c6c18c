"""Balancing: from K losses to one update.

A run's balancing is a chain: any number of `LossBalancer`, then at most one `GramianBalancer` or
`GradientBalancer`. Behind them stands one object with two phases, `TaskGradients`: *collect* a row
of gradients per present task, *apply* the balancer's answer and write `.grad`.
"""

from mtlcore.balancing.asked import Asked
from mtlcore.balancing.chain import Balancing
from mtlcore.balancing.context import (
    MISSING,
    BalancerContext,
    BalancingResult,
    Place,
    Scope,
    Status,
    ValidationProducts,
)
from mtlcore.balancing.contracts import (
    Balancer,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
    RowBalancer,
)
from mtlcore.balancing.depth import DepthSettings
from mtlcore.balancing.finite import floats, not_finite, stacked
from mtlcore.balancing.gradients import TaskGradients
from mtlcore.balancing.graphs import refuse_reentrant
from mtlcore.balancing.look_ahead import ValidationLosses
from mtlcore.balancing.reading import HostReads
from mtlcore.balancing.rows import SMALL
from mtlcore.balancing.solved import SolvedBalancer
from mtlcore.balancing.solvers import Array, Solution
from mtlcore.balancing.tentative import Tentative

__all__ = [
    "MISSING",
    "SMALL",
    "Array",
    "Asked",
    "Balancer",
    "BalancerContext",
    "Balancing",
    "BalancingResult",
    "DepthSettings",
    "GradientBalancer",
    "GramianBalancer",
    "HostReads",
    "LossBalancer",
    "Place",
    "RowBalancer",
    "Scope",
    "Solution",
    "SolvedBalancer",
    "Status",
    "TaskGradients",
    "Tentative",
    "ValidationLosses",
    "ValidationProducts",
    "floats",
    "not_finite",
    "refuse_reentrant",
    "stacked",
]
