"""SDMGrad and MoDo: weights from gradients of independent batches."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer, Status, Tentative
from mtlcore.balancing.solvers import (
    CANCELLED,
    Array,
    as_gramian,
    min_norm_point,
    simplex_projection,
)
from mtlcore.errors import UsageError
from mtlcore.ranges import NonNegative

_SCALAR = torch.zeros((), dtype=torch.float64)


def regularised_weights(products: Array, lam: float) -> Array:
    """Minimise `|sum_i (w_i + lam / K) g_i|` over the simplex; return `(w + lam / K) / (1 + lam)`.

    As w sums to 1, the sum is one of the vectors `g_i + lam g_0`, with the mean gradient g_0, so
    that w is the weight of their shortest convex combination, which is found exactly.

    Args:
        products: (K, K) inner products of the gradients, positive semidefinite.
        lam: How strongly weights are drawn to equal ones.
    """
    count = len(products)
    mix = np.eye(count) + lam / count
    w = min_norm_point(mix @ products @ mix)
    return np.asarray((w + lam / count) / (1 + lam))


def semidefinite(products: Array, scales: Array) -> Array:
    """Return the nearest products that gradients can have, with these lengths as units.

    Products of independent batches are unbiased, but no Gramian: noise can make the square of a
    combination negative, and a problem with such a combination has no minimum worth the name.

    Args:
        products: (K, K), not symmetric.
        scales: (K,), above 0.
    """
    cosines = products / scales / scales[:, None]
    values, vectors = np.linalg.eigh((cosines + cosines.T) / 2)
    if values[0] < 0:
        cosines = (vectors * np.maximum(values, 0.0)) @ vectors.T
    else:
        cosines = (cosines + cosines.T) / 2
    return np.asarray(cosines * scales * scales[:, None])


class SDMGrad(GramianBalancer):
    """Direction-oriented MGDA (Xiao, Ban & Ji, NeurIPS 2023, arXiv 2305.18409, Algorithm 1).

    MGDA's shortest combination, drawn towards the mean gradient g_0 by lam:

        w = argmin |sum_i (w_i + lam / K) g_i|^2    over w >= 0, sum w = 1,
        d = sum_i (w_i + lam / K) / (1 + lam) g_i.

    With `lam = 0` that is MGDA, with a large one the mean. A step has three independent batches
    (`training.batch_size` counts for each): w is found from the inner products of the first two,
    which are free of the bias of a single batch's, and the update is made of the third. Such
    products are made those of vectors by the nearest positive semidefinite matrix, in units of the
    gradients' lengths, and the problem is then solved exactly (Wolfe's algorithm); the paper takes
    a number of stochastic gradient steps, which do not converge at the published rates.

    Weights sum to 1, so the update has the scale of a mean, not of the sum of the losses. Heads
    learn from the mean of the batches with weight 1. A task without a gradient gets w = 1, and the
    update is what lam leaves of the mean. One that has labels in only some of the batches has no
    part in w. `status` is "degenerate" where the combination is zero.

    Args:
        lam: how strongly weights are drawn to equal ones.
        batches: 3 as in the paper, or 1: weights and update from the same batch, at a third of the
            cost, which is what the released code does.

    Raises:
        UsageError: a setting has another value.
    """

    affine = False

    def __init__(self, *, lam: NonNegative = 0.3, batches: Literal[1, 3] = 3) -> None:
        super().__init__()
        if not lam >= 0:
            raise UsageError(f"balancer.lam: {lam} is below 0")
        if batches not in (1, 3):
            raise UsageError(f"balancer.batches: {batches} is neither 1 nor 3")
        self._lam, self.batches = lam, batches
        self._status: Status = "converged"

    @property
    def status(self) -> Status:
        """How the last call ended; "degenerate" where the combination that decides is zero."""
        return self._status

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the weights.

        Args:
            gramian: (K, K) of the mean gradients.
            context: With three batches, the step's, which has `gramians`.

        Returns:
            (K,), or (3, 2, K) of the batches.

        Raises:
            UsageError: There should be three batches, and no context tells of them.
        """
        if self.batches == 1:
            return torch.from_numpy(self._solve(as_gramian(gramian)))
        if context is None or context.gramians is None or context.labelled_batches is None:
            raise UsageError(
                "balancer sdmgrad: its three batches are compared in a step of training only; "
                "outside of one, set balancer.batches = 1"
            )
        found = context.gramians.numpy()
        lengths = np.sqrt(np.stack([found[b, b].diagonal() for b in range(3)]))
        answer = np.zeros((3, 2, len(gramian)))
        # Heads learn from the mean of the batches with labels; the others have no row.
        answer[:, 1] = 1 / context.labelled_batches.numpy()
        scales = np.sqrt(lengths[0]) * np.sqrt(lengths[1])
        # Some batch lacks this task: products with it say nothing.
        unknown = (scales == 0) & (context.labelled_batches.numpy() < 3)
        known = np.flatnonzero(~unknown)
        count, lam = len(gramian), self._lam
        answer[2, 0] = lam / count / (1 + lam)
        if len(known):
            square = np.ix_(known, known)
            units = np.where(scales > 0, scales, 1.0)[known]
            products = semidefinite(found[0, 1][square], units)
            # lam of the mean over all tasks, w over those that are known.
            shares = self._solve(products) * (1 + lam) - lam / len(known)
            answer[2, 0, known] += shares / (1 + lam)
        return torch.from_numpy(answer)

    def _solve(self, products: Array) -> Array:
        weights = regularised_weights(products, self._lam)
        norms = np.sqrt(np.maximum(products.diagonal(), 0.0))
        gone = float(weights @ products @ weights) <= CANCELLED * float(weights @ norms) ** 2
        self._status = "degenerate" if gone else "converged"
        return weights


class MoDo(GramianBalancer):
    """Multi-objective gradient with double sampling (Chen et al. 2023, arXiv 2305.20057).

    MGDA's weights follow its slope instead of solving it, in each step by two independent batches,
    which makes that slope unbiased:

        lambda = Proj(lambda - gamma (J_1 J_2' lambda + rho lambda)),    d = lambda (J_1 + J_2) / 2,

    where Proj gives the nearest point of the simplex; all are equal at first. Weights sum to 1, so
    the update has the scale of a mean, not of the sum of the losses. How fast they move depends on
    the scale of the losses. Heads weigh 1.

    The tasks that have labels in a step share the weight that they have together; an absent one
    keeps its weight. One that lacks labels in one of the batches has products of zero in it.

    Args:
        gamma: how far lambda moves.
        rho: how strongly lambda is drawn to equal weights.

    Raises:
        UsageError: a setting is negative.
    """

    affine = False
    batches = 2

    def __init__(self, *, gamma: NonNegative = 0.1, rho: NonNegative = 0.1) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("rho", rho)):
            if not value >= 0:
                raise UsageError(f"balancer.{name}: {value} is below 0")
        self._gamma, self._rho = gamma, rho
        self.shares = Tentative()

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (K,) weights of the mean gradients.

        Args:
            gramian: (K, K) of the mean gradients.
            context: The step's, which has `gramians` of two batches.

        Raises:
            UsageError: No context tells of the batches.
        """
        if context is None or context.gramians is None:
            raise UsageError("balancer modo: it compares the two batches of a step of training")
        shares = np.array([self._share(task) for task in context.present])
        total = float(shares.sum())
        old = shares / total if total > 0 else np.full(len(shares), 1 / len(shares))
        slope = context.gramians[0, 1].numpy() @ old + self._rho * old
        new = simplex_projection(old - self._gamma * slope)
        for task, weight in zip(context.present, new, strict=True):
            self.shares.propose(task, torch.tensor(total * weight, dtype=torch.float64))
        return torch.from_numpy(new)

    def after_step(self, context: BalancerContext) -> None:
        self.shares.commit()

    def reset(self) -> None:
        self.shares.reset()

    def _share(self, task: str) -> float:
        """Return the weight of a task in units of equal ones, as those that join later begin."""
        found = self.shares.get(task, like=_SCALAR)
        return 1.0 if found is None else float(found)
