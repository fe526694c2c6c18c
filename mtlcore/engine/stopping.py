"""Early stopping: a task leaves the episodes, or the run ends, when validation gets no better.

A task is judged by its validation loss, and a run by the mean rank of its tasks' first metrics:
neither depends on the scale or the sign of a loss.

Patience counts epochs, as in the MTML paper (35 for a task, 50 for the run), whatever the number of
epochs between evaluations: the first evaluation so many epochs after the best one decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import attrs

from mtlcore.metrics import beats


@attrs.frozen
class Stop:
    """What learns no more.

    Args:
        task: its name; None: the run ends.
        best_epoch: after which validation was best; None where a run ends because no task is left.
    """

    task: str | None
    best_epoch: int | None


@final
@attrs.define(kw_only=True)
class Stopping:
    """Where early stopping stands; part of every checkpoint. Epochs count from 1.

    Args:
        best: task -> epoch and value of its lowest validation loss.
        evaluations: epoch of each evaluation, and what was compared of it: task -> value.
        best_evaluation: number of the best of them; None while all values were NaN.
        held: stopped task -> the value that stands for it from then on, whatever the others'
            learning does to it.
        stopped: stopped task -> the epoch after which it learnt no more.
        ended: the epoch after which the run ended early.
        reset_due: the backbone has entered a phase in this epoch: from the next epoch on all tasks
            learn again, and patience starts at zero.
    """

    best: dict[str, tuple[int, float]] = attrs.field(factory=dict)
    evaluations: list[tuple[int, dict[str, float]]] = attrs.field(factory=list)
    best_evaluation: int | None = None
    held: dict[str, float] = attrs.field(factory=dict)
    stopped: dict[str, int] = attrs.field(factory=dict)
    ended: int | None = None
    reset_due: bool = False

    def update(
        self,
        epoch: int,
        losses: Mapping[str, float],
        values: Mapping[str, float],
        *,
        task_patience: int | None,
        patience: int | None,
    ) -> list[Stop]:
        """Take in an evaluation; returns what stops at it, the run last.

        A loss that is not finite is no improvement. A task that never had a finite one (it has no
        validation label) is not stopped by itself.

        Args:
            epoch: that was evaluated.
            losses: validation losses of the tasks that the run learns.
            values: of the same tasks, what the run is judged by; lower is better.
            task_patience: epochs that a task has; None: it is never stopped.
            patience: epochs that the run has; None: it ends only when no task is left.
        """
        stops = []
        for task, loss in losses.items():
            if task in self.stopped:
                continue
            if math.isfinite(loss) and (task not in self.best or loss < self.best[task][1]):
                self.best[task] = (epoch, loss)
            if self._waited(epoch, self.best.get(task), task_patience):
                self.stopped[task] = epoch
                self.held[task] = self._last_known(task, values[task])
                stops.append(Stop(task, self.best[task][0]))
        self.evaluations.append((epoch, {**values, **self.held}))
        self._compare()
        best = None if self.best_evaluation is None else self.evaluations[self.best_evaluation]
        if self._waited(epoch, best, patience):
            assert best is not None
            stops.append(Stop(None, best[0]))
        elif set(losses) <= set(self.stopped):
            stops.append(Stop(None, None))
        if stops and stops[-1].task is None:
            self.ended = epoch
        return stops

    def _compare(self) -> None:
        values = [values for _, values in self.evaluations]
        if self.best_evaluation is not None:
            better = beats(values, self.best_evaluation)
        else:
            better = not all(map(math.isnan, values[-1].values()))
        if better:
            self.best_evaluation = len(values) - 1

    def _last_known(self, task: str, value: float) -> float:
        known = [value, *(values[task] for _, values in reversed(self.evaluations))]
        return next((x for x in known if not math.isnan(x)), math.nan)

    @staticmethod
    def _waited(epoch: int, best: tuple[int, object] | None, patience: int | None) -> bool:
        return patience is not None and best is not None and epoch - best[0] >= patience
