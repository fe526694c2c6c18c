"""The chain of a run's balancers, and the weights that it reuses between two updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlcore.balancing.context import BalancerContext, BalancingResult, Scope
from mtlcore.balancing.contracts import (
    Balancer,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
    RowBalancer,
)
from mtlcore.balancing.depth import DepthEstimate, DepthSettings
from mtlcore.balancing.tentative import Tentative
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.tasks import Task

_WHOLE_SCOPE = DepthSettings()


class Balancing(nn.Module):
    """The chain of a run's balancers.

    Args:
        balancers: Any number of loss balancers, then at most one balancer of gradients.
        update_every: Ask the balancer of gradients only every so many steps, and reuse its
            weights between. A task that was absent when it was asked keeps its last weight.
        depth: Of how much of the trunk the gradients are compared.

    Attributes:
        needs_maps: Whether a balancer of losses reads elementwise losses.
        estimate: What corrects the Gramian where less than the balancer's scope is compared; None
            where all of it is.

    Raises:
        UsageError: The balancers are in another order, or the weights cannot be reused.
    """

    def __init__(
        self,
        balancers: Sequence[Balancer],
        update_every: int = 1,
        depth: DepthSettings = _WHOLE_SCOPE,
    ) -> None:
        super().__init__()
        for balancer in balancers[:-1]:
            if not isinstance(balancer, LossBalancer):
                raise UsageError(
                    f"balancer.chain: {type(balancer).__name__} works on gradients and must be "
                    "the last of the chain (and the only one of its sort)"
                )
        self.balancers = nn.ModuleList(balancers)
        # The same once more: a ModuleList takes microseconds to look into, several times a step.
        self._chain = tuple(balancers)
        self._of_losses = tuple(b for b in balancers if isinstance(b, LossBalancer))
        # A tuple, because an attribute that is a module would be a second name of its state.
        self._of_rows = tuple(b for b in balancers[-1:] if isinstance(b, RowBalancer))
        self._tentative = [m for m in self.modules() if isinstance(m, Tentative)]
        self.needs_maps = any(b.needs_maps for b in self._of_losses)
        self.update_every = update_every
        self._last_weights: dict[str, list[float]] = {}
        if update_every > 1 and not isinstance(self.finisher, GramianBalancer):
            raise UsageError("balancer.update_every needs a balancer that weighs task gradients")
        self._depth = depth
        self.estimate = None if depth.depth == "all" else DepthEstimate(depth)
        self._check_depth()
        if isinstance(self.finisher, GradientBalancer):
            self.finisher.check_columns()
        if isinstance(self.finisher, GradientBalancer) and self.scope == "last_shared":
            raise UsageError(
                f"balancer: {type(self.finisher).__name__} combines gradients, and those of the "
                "last shared layer say nothing of the layers before it; use the scope 'shared' or "
                "'features'"
            )
        self._check_batches()

    @property
    def finisher(self) -> RowBalancer | None:
        """The balancer of gradients at the end of the chain; None if there is none."""
        return self._of_rows[0] if self._of_rows else None

    @property
    def scope(self) -> Scope:
        """What is compared: the balancer's own scope, unless less was asked for."""
        if self._depth.depth == "all":
            return "shared" if self.finisher is None else self.finisher.scope
        return "features" if self._depth.depth == "features" else "last_shared"

    @property
    def blocks(self) -> int | None:
        """Number of last blocks of the trunk that are compared; None: what the scope says."""
        return self._depth.depth if isinstance(self._depth.depth, int) else None

    @property
    def batches(self) -> int:
        """Number of independent batches of a step."""
        return 1 if self.finisher is None else self.finisher.batches

    @property
    def validation(self) -> str | None:
        """The split of a step's validation batch; None if no balancer asks for one."""
        return None if self.finisher is None else self.finisher.validation

    @property
    def chain(self) -> Sequence[Balancer]:
        """All balancers, in order."""
        return self._chain

    @property
    def loss_balancers(self) -> Sequence[LossBalancer]:
        """The loss balancers, in order."""
        return self._of_losses

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Prepare every balancer of the chain."""
        for balancer in self._chain:
            balancer.prepare(tasks, data)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Return the losses after every loss balancer; no losses are returned unchanged."""
        for balancer in self.loss_balancers if losses else ():
            losses = balancer.transform(losses, context)
        return losses

    def after_skipped_step(self) -> None:
        """Drop what balancers proposed in a step that was not taken."""
        for tentative in self._tentative:
            tentative.discard()
        if self.estimate is not None:
            self.estimate.discard()

    def after_step(self, context: BalancerContext) -> None:
        """Let every balancer update its state after a step that was taken."""
        for balancer in self._chain:
            balancer.after_step(context)

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Let every balancer learn from an evaluation."""
        for balancer in self._chain:
            balancer.after_evaluation(metrics)

    def reset(self) -> None:
        """Let every balancer forget."""
        self._last_weights = {}
        if self.estimate is not None:
            self.estimate.reset()
        for balancer in self._chain:
            balancer.reset()

    def reused_weights(self, tasks: Sequence[str], step: int) -> Mapping[str, list[float]] | None:
        """Return the last weights if this step lies between two updates and all tasks have some.

        Args:
            tasks: All tasks of the run, so that all ranks and micro-batches do the same.
            step: Number of the step, from 0.

        Returns:
            Per task, the weight at the shared parameters and the weight at its own; or None.
        """
        if step % self.update_every == 0 or any(t not in self._last_weights for t in tasks):
            if self.estimate is not None:
                self.estimate.begin(step // self.update_every)
            return None
        if self.estimate is not None:
            self.estimate.skip()
        return self._last_weights

    def remember(self, result: BalancingResult) -> None:
        """Keep the weights of a step that was taken, if later steps may reuse them, and lengths."""
        if self.estimate is not None:
            self.estimate.commit()
        if self.update_every > 1:
            new = {task: [result.weights[task], head] for task, head in result.heads.items()}
            self._last_weights = {**self._last_weights, **new}

    def _check_depth(self) -> None:
        """Refuse to compare less where that says nothing of the rest."""
        depth = self._depth
        if self.estimate is None:
            for key in ("norms_every", "verify_every"):
                if getattr(depth, key) is not None:
                    raise UsageError(
                        f"balancer.{key}: all gradients are compared exactly; it goes with "
                        "balancer.depth"
                    )
            return
        name = type(self.finisher).__name__
        if self.finisher is None:
            raise UsageError("balancer.depth needs a balancer that compares task gradients")
        if self.finisher.scope != "shared":
            raise UsageError(
                f"balancer.depth: {name} has a scope of its own, {self.finisher.scope!r}; leave it "
                "out"
            )
        if not isinstance(self.finisher, GramianBalancer):
            raise UsageError(
                f"balancer.depth: {name} combines gradients themselves, and those of the last "
                "layers say nothing of the layers before them; leave it out"
            )
        if self.finisher.batches > 1 or self.finisher.validation is not None:
            raise UsageError(
                f"balancer.depth: {name} compares gradients of different batches, which takes all "
                "of the trunk; leave it out"
            )

    def _check_batches(self) -> None:
        """Refuse balancers that ask for batches of which they would see nothing."""
        for balancer in self._chain:
            batches, validation = balancer.batches, balancer.validation
            name = type(balancer).__name__
            if type(batches) is not int or batches < 1:
                raise UsageError(f"balancer: {name}.batches: {batches!r} is no number of batches")
            if validation not in (None, "val", "train"):
                raise UsageError(
                    f"balancer: {name}.validation: {validation!r} is not a split; it is 'val', "
                    "'train' or None"
                )
            if batches == 1 and validation is None:
                continue
            if not isinstance(balancer, GramianBalancer):
                raise UsageError(
                    f"balancer: {name} asks for several independent batches or a validation "
                    "batch, whose gradients only a balancer of Gramians can compare"
                )
            # Features of other samples are other coordinates.
            allowed = ("shared",) if validation else ("shared", "last_shared")
            if balancer.scope not in allowed:
                raise UsageError(
                    f"balancer: {name} compares gradients of different batches, and with the "
                    f"scope {balancer.scope!r} these have nothing in common; use the scope "
                    "'shared'"
                )

    def get_extra_state(self) -> dict[str, Any]:
        lengths = {} if self.estimate is None else self.estimate.state_dict()
        return {"last_weights": self._last_weights, "lengths": lengths}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._last_weights = dict(state["last_weights"])
        if self.estimate is not None:
            self.estimate.load_state_dict(state["lengths"])
