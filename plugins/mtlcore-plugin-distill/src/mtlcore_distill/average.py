"""Mean teacher: an average of the network's past selves teaches it on another view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.loading import as_seen_in
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import AVERAGE, StepContext
from mtlcore.ranges import Fraction, NonNegative
from mtlcore.tasks import Task
from mtlcore_distill.answers import values


@final
class MeanTeacher(CrossTaskLoss):
    """Predictions on a view come near the average's on the view that the supervised losses see.

    Tarvainen and Valpola, NeurIPS 2017 (arXiv 1703.01780). The teacher is the run's averaged model
    (`training.ema`), which looks at view 0; what it says is moved as view 1 was (a crop, a mirror
    image), and the term of a task is w(t) times the mean squared difference of both: of
    probabilities of classes, edges and saliency, of unit normals, and of plain values otherwise.
    All samples count, whether they have a label or not, as in the paper. The weight rises with the
    fraction t of the run that is done as `w(t) = weight exp(-5 (1 - t / ramp)^2)`, and stays at
    `weight` from t = ramp on.

    Deviations: the paper has one task, of classes of images; teacher and student see noise of
    their own there, dropout included, and here the teacher is in evaluation mode and sees the view
    without further augmentation.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of each task's term after the ramp.
        ramp: fraction of the run over which the weight rises; 0: it does not.
    """

    views = 2
    needs_teachers = (AVERAGE,)
    done: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        ramp: Fraction = 0.25,
    ) -> None:
        super().__init__()
        self._tasks = {task.name: task for task in tasks}
        self._weight, self._ramp = weight, ramp
        self.register_buffer("done", torch.zeros(()))

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return all tasks."""
        return tasks

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute a term `mean-teacher/TASK` for each task that is predicted."""
        names = [name for name in self._tasks if name in predictions]
        first, second = ([i for i, view in enumerate(batch.view) if view == n] for n in (0, 1))
        if not names or not first:
            return {}
        taught = self.teachers[AVERAGE].predict(batch.first_views().inputs, names)
        weight, terms = self._risen(), {}
        for name in names:
            task = self._tasks[name]
            expected = values(task, taught[name])
            if task.layout == "map":
                moved = [as_seen_in(task, maps, batch.meta[row])
                         for maps, row in zip(expected, second, strict=True)]  # fmt: skip
                expected = torch.stack(moved)
            found = values(task, predictions[name][second])
            terms[f"mean-teacher/{name}"] = weight * F.mse_loss(found, expected)
        return terms

    def after_step(self, context: StepContext) -> None:
        """Remember how much of the run is done, where the weight rises with it."""
        if self._ramp:
            self.done.fill_(context.progress)

    def _risen(self) -> Tensor | float:
        """Return the weight as of now, without waiting for a device."""
        if not self._ramp:
            return self._weight
        missing = 1 - (self.done / self._ramp).clamp_max(1)
        return self._weight * (-5 * missing.square()).exp()
