"""Balancers of Gramians that solve a problem, and say how that ended."""

from __future__ import annotations

import abc
from typing import final

import torch
from torch import Tensor

from mtlcore.balancing.context import BalancerContext, Status
from mtlcore.balancing.contracts import GramianBalancer
from mtlcore.balancing.solvers import Array, Solution, as_gramian


class SolvedBalancer(GramianBalancer):
    """A balancer of Gramians whose weights solve a problem, as numpy arrays.

    `mtlcore.balancing.solvers` has functions to build `solve` from.
    """

    affine = False

    def __init__(self) -> None:
        super().__init__()
        self._status: Status = "converged"

    @abc.abstractmethod
    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        """Return the weights of the tasks for a Gramian.

        Args:
            gramian: (K, K) float64, finite; not to be edited.
            context: What is known of the step; None outside a training loop.
        """

    @final
    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the weights for the (K, K) inner products of the task gradients.

        Returns:
            (K,) float64, or (2, K) whose second row weights the heads.

        Raises:
            ValueError: the Gramian is not square or not finite.
        """
        self._status = "not finite"
        solution = self.solve(as_gramian(gramian), context)
        self._status = solution.status
        return torch.from_numpy(solution.weights)

    @property
    def status(self) -> Status:
        """How the last call of `weights` ended; "degenerate" where the problem has no solution."""
        return self._status
