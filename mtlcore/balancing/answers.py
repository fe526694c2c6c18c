"""What balancers answer, as weights; what a Gramian tells, as cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

# Weights of the tasks' gradients at the shared parameters, and at parameters of single tasks.
Weights = tuple[list[float], list[float]]


def split_weights(weights: Tensor) -> Weights:
    """Split a balancer's answer; heads are weighted 1 unless it says otherwise."""
    values = weights.tolist()
    return (values, [1.0] * len(values)) if weights.dim() == 1 else (values[0], values[1])


def cosines(tasks: Sequence[str], gramian: list[list[float]]) -> dict[tuple[str, str], float]:
    """Return the cosine of the gradients of each pair of tasks that both have one."""
    norms = [math.sqrt(row[number]) for number, row in enumerate(gramian)]
    return {
        (tasks[i], tasks[j]): gramian[i][j] / norms[i] / norms[j]
        for i, j in combinations(range(len(tasks)), 2)
        if norms[i] > 0 and norms[j] > 0
    }
