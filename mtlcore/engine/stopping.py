"""Early stopping: a task leaves the episodes, or the run ends, when validation gets no better.

Patience counts epochs, as in the MTML paper (35 for a task, 50 for the run), whatever the number of
epochs between evaluations: the first evaluation so many epochs after the best one decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import attrs


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
        best_score: epoch and value of the lowest score of the run.
        held: stopped task -> its validation loss when it stopped, which stands for it in the score
            from then on, whatever the others' learning does to it.
        stopped: stopped task -> the epoch after which it learnt no more.
        ended: the epoch after which the run ended early.
        reset_due: the backbone has entered a phase in this epoch: from the next epoch on all tasks
            learn again, and patience starts at zero.
    """

    best: dict[str, tuple[int, float]] = attrs.field(factory=dict)
    best_score: tuple[int, float] | None = None
    held: dict[str, float] = attrs.field(factory=dict)
    stopped: dict[str, int] = attrs.field(factory=dict)
    ended: int | None = None
    reset_due: bool = False

    def update(
        self,
        epoch: int,
        losses: Mapping[str, float],
        units: Mapping[str, float],
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
            units: what they were at the first evaluation.
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
                self.held[task] = loss if math.isfinite(loss) else self.best[task][1]
                stops.append(Stop(task, self.best[task][0]))
        total = score({**losses, **self.held}, units)
        if math.isfinite(total) and (self.best_score is None or total < self.best_score[1]):
            self.best_score = (epoch, total)
        if self._waited(epoch, self.best_score, patience):
            assert self.best_score is not None
            stops.append(Stop(None, self.best_score[0]))
        elif set(losses) <= set(self.stopped):
            stops.append(Stop(None, None))
        if stops and stops[-1].task is None:
            self.ended = epoch
        return stops

    @staticmethod
    def _waited(epoch: int, best: tuple[int, float] | None, patience: int | None) -> bool:
        return patience is not None and best is not None and epoch - best[0] >= patience


def score(losses: Mapping[str, float], units: Mapping[str, float]) -> float:
    """Return the mean validation loss of tasks, each in its own unit; infinite if there is none.

    Losses of tasks differ by orders of magnitude: in their own units they count alike.

    Args:
        losses: task -> loss.
        units: task -> loss that counts 1; a task whose unit is not finite and positive is left out.
    """
    terms = [
        loss / units[task]
        for task, loss in losses.items()
        if math.isfinite(units[task]) and units[task] > 0
    ]
    return sum(terms) / len(terms) if terms else math.inf
