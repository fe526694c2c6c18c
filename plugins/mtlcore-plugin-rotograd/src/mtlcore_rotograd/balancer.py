"""RotoGrad's lengths: a balancer of Gramians at the features."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer, Scope, Status, Tentative
from mtlcore.ranges import Natural


class OneLength(GramianBalancer):
    """Gradients of one length (Javaloy & Valera, ICLR 2022, arXiv 2103.02631, section 3.1).

    At the features, the gradient of each task gets the length

        C = sum_i a_i |G_i|,    a_i = (|G_i| / |G_i^0|) / sum_j (|G_j| / |G_j^0|),

    a mean in which tasks count by how little their gradients fell since a reference step, so that
    those that have not converged set the pace: task i weighs `C / |G_i|`, and its head 1. The
    reference of a task is its first step, and from its step number `burn_in` on that one, as the
    first steps of a network are not typical.

    A rotation of the features leaves these lengths alone, so it is right with and without that of
    the backbone "rotograd". A task whose gradient is zero weighs 0, and the step counts as
    "degenerate". An absent task keeps its reference.

    Args:
        burn_in: number of the task's step, from 0, whose gradient becomes the reference.
    """

    scope: Scope = "features"

    def __init__(self, *, burn_in: Natural = 20) -> None:
        super().__init__()
        self._burn_in = burn_in
        # Per task: the length of the reference gradient, and the number of steps.
        self._references = Tentative()
        self._status: Status = "converged"

    @property
    def status(self) -> Status:
        return self._status

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the weights at the features, and ones for the heads.

        Without a context, nothing is known of earlier steps: all `|G_i| / |G_i^0|` are 1.
        """
        self._references.discard()  # in somebody's own loop, a step may be left out without a word
        lengths = gramian.diagonal().clamp(min=0).sqrt()
        found = lengths > 0
        self._status = "converged" if bool(found.all()) else "degenerate"
        falls = torch.where(found, 1.0, 0.0).to(gramian)
        for place, task in enumerate(() if context is None else context.present):
            if found[place]:
                falls[place] = lengths[place] / self._reference(task, lengths[place])
        common = (falls * lengths).sum() / falls.sum().clamp(min=torch.finfo(falls.dtype).tiny)
        shared = torch.where(found, common / torch.where(found, lengths, 1.0), 0.0)
        return torch.stack([shared, torch.ones_like(shared)])

    def after_step(self, context: BalancerContext) -> None:
        self._references.commit()

    def reset(self) -> None:
        self._references.reset()

    def _reference(self, task: str, length: Tensor) -> Tensor:
        """Return the length of a task's reference gradient; it may be the present one."""
        kept = self._references.get(task, like=length)
        reference, steps = (length, length.new_zeros(())) if kept is None else kept
        if int(steps) == self._burn_in:
            reference = length
        self._references.propose(task, torch.stack([reference, steps + 1]))
        return reference
