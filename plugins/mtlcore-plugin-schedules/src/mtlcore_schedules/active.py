"""Active sampling: the task that is farthest from its target is trained most often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from mtlcore.balancing import BalancerContext
from mtlcore.episodes import BatchPlan, Episode, StepPlan, StepSampler, batch_bounds
from mtlcore.ranges import Count, NonNegative, Positive
from mtlcore.tasks import refuse_unknown_tasks


@final
class Active(StepSampler):
    """Active sampling (Sharma et al., ICLR 2018, their A5C) by training losses.

    A step trains one task, drawn with the probability

        p_i = exp(m_i / temperature) / sum over j of exp(m_j / temperature),
        m_i = (l_i - t_i) / (f_i - t_i), and 0 where the task has reached its target,

    where l_i is the mean of its last `window` losses, f_i that of its first ones and t_i its
    target: 1 where nothing is learnt yet, 0 at the target. A task without a loss counts as 1; at
    first tasks take turns until each has had `window` steps. Probabilities change every `window`
    steps. An epoch shows every sample once, each to one task.

    Args:
        tasks: names of the run's tasks.
        splits: number of samples per split.
        temperature: the smaller, the more often the farthest task is drawn.
        window: number of losses in a mean, and of steps between two changes.
        targets: task -> loss at which it counts as learnt; 0 where none is named.

    Raises:
        UsageError: a target is of a task that does not learn.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        splits: Mapping[str, int],
        *,
        temperature: Positive = 0.05,
        window: Count = 10,
        targets: dict[str, NonNegative] | None = None,
    ) -> None:
        self._size = splits["train"]
        self._temperature, self._window = temperature, window
        self._targets = dict(targets or {})
        refuse_unknown_tasks("episodes.targets", self._targets, tasks)
        self.horizon = window
        self._order = torch.arange(self._size)
        self._planned: dict[str, int] = {}
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, list[float]] = {}

    def steps(self, batch_size: int) -> int:
        """Return the number of batches."""
        return len(batch_bounds(self._size, batch_size))

    def probabilities(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return the probability that the next step trains each of these tasks."""
        waiting = {task: self._planned.get(task, 0) for task in tasks}
        fewest = min(waiting.values())
        if fewest < self._window:
            # In turns: those that have had the fewest steps.
            next_ones = [task for task in tasks if waiting[task] == fewest]
            return {task: float(task in next_ones) / len(next_ones) for task in tasks}
        left = torch.tensor([self._left(task) for task in tasks], dtype=torch.float64)
        return dict(zip(tasks, (left / self._temperature).softmax(0).tolist(), strict=True))

    def plan(
        self, number: int, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> StepPlan:
        """Return the next batch, for one task."""
        if number == 0:
            self._order = torch.randperm(self._size, generator=generator)
        begin, end = batch_bounds(self._size, batch_size)[number]
        seed = int(torch.randint(2**62, (), generator=generator))
        batch = BatchPlan("train", tuple(self._order[begin:end].tolist()), seed, augment=True)
        chances = torch.tensor(list(self.probabilities(tasks).values()), dtype=torch.float64)
        task = tasks[int(chances.multinomial(1, generator=generator))]
        self._planned[task] = self._planned.get(task, 0) + 1
        return StepPlan((batch,), (Episode((task,), support=0),))

    def after_step(self, context: BalancerContext) -> None:
        """Take the losses of a step into the means."""
        for task, loss in context.losses.items():
            value = float(loss)
            first = self._first.setdefault(task, [])
            if len(first) < self._window:
                first.append(value)
            self._last[task] = [*self._last.get(task, []), value][-self._window :]

    def state_dict(self) -> dict[str, Any]:
        """Return the order of the epoch, the turns, and the losses of each mean."""
        return {
            "order": self._order,
            "planned": self._planned,
            "first": self._first,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._order = state["order"]
        self._planned = dict(state["planned"])
        self._first = {task: list(losses) for task, losses in state["first"].items()}
        self._last = {task: list(losses) for task, losses in state["last"].items()}

    def _left(self, task: str) -> float:
        """Return which part of the way from the first loss to the target is left."""
        if task not in self._last:
            return 1.0
        target = self._targets.get(task, 0.0)
        last, first = (_mean(losses) - target for losses in (self._last[task], self._first[task]))
        return last / first if last > 0 and first > 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
