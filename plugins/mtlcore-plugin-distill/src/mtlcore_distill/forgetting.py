"""Learning without forgetting: what a network said before it goes on learning is a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import INITIAL
from mtlcore.ranges import Positive
from mtlcore.tasks import Task
from mtlcore_distill.answers import distilled


@final
class LwF(CrossTaskLoss):
    """Old tasks are predicted as the run predicted them that the network starts from.

    Li and Hoiem, TPAMI 2018 (ECCV 2016, arXiv 1606.09282). Its term for a task that the teacher
    "initial" knows is the mean over those samples of the batch that have no label of the task: of
    classes the cross entropy of both probabilities at a temperature, of logits the same for each,
    of normals 1 - cosine, of all else the absolute difference. Where there are labels, these teach.

    The paper records answers once, before training; here the teacher gives them for each batch,
    which is the same, and also fits augmented images. It has classifications alone; what is
    compared of maps is ours, and several labels of an image are averaged where it adds them up.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of each old task's term, the paper's lambda_o.
        temperature: that softens probabilities.
    """

    needs_teachers = (INITIAL,)

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: Positive = 1.0,
        temperature: Positive = 2.0,
    ) -> None:
        super().__init__()
        self._tasks = {task.name: task for task in tasks}
        self._weight, self._temperature = weight, temperature

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return the old tasks of which a sample has no label."""
        return [task for task in tasks if self._unlabelled(batch, task)]

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute a term `lwf/TASK` for each old task of which a sample has no label."""
        rows = {task: self._unlabelled(batch, task) for task in self._tasks if task in predictions}
        asked = [task for task, unlabelled in rows.items() if unlabelled]
        if not asked:
            return {}
        taught = self.teachers[INITIAL].predict(batch.inputs, asked)
        return {
            f"lwf/{name}": self._weight
            * distilled(
                self._tasks[name],
                predictions[name][rows[name]],
                taught[name][rows[name]],
                self._temperature,
            )
            for name in asked
        }

    def _unlabelled(self, batch: Batch, task: str) -> list[int]:
        """Return the rows of the samples without a label of a task; none of a new task."""
        if task not in self.teachers[INITIAL].tasks:
            return []
        return [row for row, labelled in enumerate(batch.labelled[task]) if not labelled]
