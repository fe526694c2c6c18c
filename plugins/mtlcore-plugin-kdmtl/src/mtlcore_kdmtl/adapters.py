"""KD-MTL: the features of a multi-task network are aligned with those of single-task networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss
from mtlcore.optimizers import Schedule
from mtlcore.ranges import LearningRate, NonNegative
from mtlcore.tasks import Task, refuse_unknown_tasks

#: What the authors' code adds to the squared length of a feature before it takes the root.
TINY = 1e-6


@final
class KDMTL(CrossTaskLoss):
    """Adapted features of the network come near those of each task's own, frozen network.

    Li and Bilen, ECCV Workshops 2020 (arXiv 2007.06889). For a task t with the weight lambda_t, and
    each map f that its head reads, the term is

        lambda_t  mean over samples and positions of  || u(A_t f) - u(f_t) ||^2

    with f_t the map of the task's teacher, A_t a linear map over channels (a 1x1 convolution
    without a bias), which is learnt, one for each map, and u(x) = x / sqrt(|x|^2 + 1e-6) the unit
    vector over channels. Terms of several maps are added. No label is read: every sample counts.

    The teacher of a task is the one that bears its name in `[teachers]`. Its maps must have the
    shapes of the network's, which those of the same network with one task have.

    Deviation from the authors' code: there, teachers stay in training mode, so that batch norms
    normalise by the batch; here they are in evaluation mode, as all teachers are.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weights: task name -> lambda; a task that is not named has 1, and one with 0 needs no
            teacher.
        lr: base learning rate of the adapters; unset: the run's.
        weight_decay: of the adapters; unset: the run's.
        schedule: of the adapters' learning rate; unset: the run's.

    Raises:
        UsageError: there is a weight for a task that the run does not have.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weights: dict[str, NonNegative] | None = None,
        lr: LearningRate | None = None,
        weight_decay: NonNegative | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        weights = weights or {}
        refuse_unknown_tasks("cross_task.weights", weights, tasks)
        taught = [task for task in tasks if weights.get(task.name, 1.0) > 0]
        self.needs_teachers = tuple(task.name for task in taught)
        self._weights = {task.name: weights.get(task.name, 1.0) for task in taught}
        self._keys = {task.name: task.key for task in taught}
        self._rates = {"lr": lr, "weight_decay": weight_decay, "schedule": schedule}
        self.adapters = nn.ModuleDict(
            {
                task.key: nn.ModuleList(Adapter(channels) for channels in features.channels)
                for task in taught
            }
        )

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return the tasks with a teacher: a network with maps of their own must make these."""
        return [task for task in tasks if task in self._weights]

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute a term `kdmtl/TASK` for each task that is predicted and has a teacher.

        Raises:
            UsageError: a teacher does not know its task, or its maps have other shapes.
        """
        terms = {}
        for task, weight in self._weights.items():
            if task not in predictions:
                continue
            own, wanted = features.of(task), self._taught(task, batch)
            if (here := _shapes(own)) != (there := _shapes(wanted)):
                raise UsageError(
                    f"teachers.{task}: its features have the shapes {there}, and those of the run "
                    f"{here}; train the teacher with the run's model and the size of its images"
                )
            adapters = cast(nn.ModuleList, self.adapters[self._keys[task]])
            distances = [
                (unit(adapter(map_.float())) - unit(expected.float())).square().sum(1).mean()
                for adapter, map_, expected in zip(adapters, own, wanted, strict=True)
            ]
            terms[f"kdmtl/{task}"] = weight * torch.stack(distances).sum()
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the group of the adapters."""
        chosen = {name: value for name, value in self._rates.items() if value is not None}
        return [{"params": list(self.adapters.parameters()), **chosen}]

    def _taught(self, task: str, batch: Batch) -> tuple[Tensor, ...]:
        teacher = self.teachers[task]
        if task not in teacher.tasks:
            raise UsageError(
                f"teachers.{task}: has learnt {', '.join(teacher.tasks)}; kdmtl asks the teacher "
                f"of a name for the task of that name, so let it be a run that has learnt {task}"
            )
        return teacher.features(batch.inputs, [task]).of(task)


@final
class Adapter(nn.Module):
    """A linear map over the channels of a map or vector, which keeps their number.

    Its weight begins as the authors' do, Xavier normal.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(channels, channels)))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, ...) to the same shape."""
        return torch.einsum("oc,bc...->bo...", self.weight, features)


def unit(features: Tensor) -> Tensor:
    """Return features (B, C, ...) as unit vectors over channels; those near 0 stay shorter."""
    return features / (features.square().sum(1, keepdim=True) + TINY).sqrt()


def _shapes(maps: Iterable[Tensor]) -> str:
    return ", ".join("x".join(map(str, x.shape[1:])) for x in maps)
