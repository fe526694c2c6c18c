"""The losses of a step, as the host comes to know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import final

from mtlcore.balancing import BalancerContext, HostReads, not_finite, stacked
from mtlcore.learner import Learner
from mtlcore.losses import TaskLosses


@final
class StepLosses:
    """Means of the losses of a step's batches, and what in them is not finite.

    Args:
        reads: Brings their values to the host.

    Attributes:
        cross: Cross-task terms, summed over the batches.
        problem: Why the step is to be skipped; None as far as is known.
    """

    def __init__(self, reads: HostReads) -> None:
        self._reads = reads
        self._losses: dict[str, float] = {}
        self._masses: dict[str, float] = {}
        self._early: dict[str, float] = {}
        self.cross: dict[str, float] = {}
        self.problem: str | None = None

    def add(self, losses: TaskLosses, shares: Mapping[str, float], part: float) -> None:
        """Add those of a batch, when the host reads them.

        Args:
            losses: Of the batch.
            shares: The factor on each present task's loss.
            part: The factor on cross-task terms.
        """
        groups = (losses.raw, losses.cross, losses.balanced, losses.early)
        names = [tuple(group) for group in groups]
        self._reads.ask(stacked(*groups), partial(self._told, names, shares, part))

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses of the present tasks, and those of early predictions."""
        masses = self._masses
        losses = {task: total / masses[task] for task, total in self._losses.items()}
        return losses, {task: total / masses[task] for task, total in self._early.items()}

    def describe(self, context: BalancerContext) -> str | None:
        """Tell balancers of them; return why the step is to be skipped, or None."""
        losses, early = self.means()
        context.present = tuple(losses)
        # What balancers balance has the early predictions in it.
        context.losses = {task: loss + early.get(task, 0.0) for task, loss in losses.items()}
        return self.problem

    def agree(self, learner: Learner) -> None:
        """Exchange losses and problems, so that all ranks learn, or skip the step, together."""
        generator = learner.context.generator
        state = None if generator is None else generator.get_state()
        sums = (self._losses, self._masses, self.cross, self._early)
        everywhere = learner.distributed.all_gather((sums, self.problem, state))
        losses, masses, cross, early = (
            _summed(parts) for parts in zip(*(rank[0] for rank in everywhere), strict=True)
        )
        # In the order of the run's tasks, which a rank without some of them would not keep.
        self._losses = {task: losses[task] for task in learner.tasks if task in losses}
        self._masses, self.cross, self._early = masses, cross, early
        self.problem = next((rank[1] for rank in everywhere if rank[1] is not None), None)
        # Loss balancers may have drawn more where more tasks have labels.
        first_state = everywhere[0][2]
        if generator is not None and first_state is not None:
            generator.set_state(first_state)

    def _told(
        self,
        names: Sequence[Sequence[str]],
        shares: Mapping[str, float],
        part: float,
        values: Sequence[float],
    ) -> None:
        following = iter(values)
        raw, cross, balanced, early = ({name: next(following) for name in group} for group in names)
        # A balanced loss can be infinite where the raw one is not (an overflowing weight).
        problem = not_finite(
            {"loss": raw, "early loss": early, "term": cross, "balanced loss": balanced}
        )
        self.problem = self.problem or problem
        for task, value in raw.items():
            self._losses[task] = self._losses.get(task, 0.0) + shares[task] * value
            self._masses[task] = self._masses.get(task, 0.0) + shares[task]
        for task, value in early.items():
            self._early[task] = self._early.get(task, 0.0) + shares[task] * value
        for name, value in cross.items():
            self.cross[name] = self.cross.get(name, 0.0) + part * value


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
