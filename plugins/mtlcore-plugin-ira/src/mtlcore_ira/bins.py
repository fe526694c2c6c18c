"""Classes for a task of continuous values: bins that hold equally many training labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.tasks import Task

# Values looked at per sample, evenly spread over its valid ones: edges need no more of them.
_VALUES = 4096


@final
class Bins(nn.Module):
    """Bins of equal frequency; a value on an edge belongs to the bin above.

    Args:
        task: one value per place.
        count: of bins.

    Attributes:
        edges: (count - 1,) float64 between the bins, in the task's unit; NaN before they are
            fitted. Where labels repeat a value, edges may be equal; the bin between stays empty.
    """

    edges: Tensor

    def __init__(self, task: Task, count: int) -> None:
        super().__init__()
        self._task, self._count = task, count
        self.register_buffer("edges", torch.full((count - 1,), torch.nan, dtype=torch.float64))
        self._known = False

    @property
    def fitted(self) -> bool:
        """Whether edges are known; asks the device until they are."""
        self._known = self._known or not bool(self.edges.isnan().any())
        return self._known

    def classes(self, target: Tensor) -> Tensor:
        """Return the bin of each value, (B, 1, ...) -> (B, ...); (B, 1) keeps its shape.

        Raises:
            UsageError: the edges are unknown.
        """
        if not self.fitted:
            raise UsageError(
                f"balancer ira: no training label of {self._task.name} was seen to fit its bins "
                "on; outside of a run, give prepare(tasks, batches) some batches"
            )
        values = target.squeeze(1) if self._task.layout == "map" else target
        return torch.bucketize(values.contiguous(), self.edges.to(values.dtype), right=True)

    def names(self) -> list[str]:
        """Return names of the bins, such as "2: 1.31 to 1.8 m"; numbers tell equal ones apart."""
        shown = [f"{edge:.3g}" for edge in self.edges.tolist()]
        unit = f" {self._task.unit}" if self._task.unit else ""
        ranges = [f"to {shown[0]}"]
        ranges += [f"{low} to {high}" for low, high in pairwise(shown)]
        ranges += [f"from {shown[-1]}"]
        return [f"{number}: {text}{unit}" for number, text in enumerate(ranges, 1)]

    def fit(self, values: Tensor) -> None:
        """Cut at the quantiles of these values, (N,)."""
        ordered = values.double().sort().values
        cuts = torch.arange(1, self._count) * len(ordered) // self._count
        self.edges.copy_(ordered[cuts])


def fit_bins(wanted: Mapping[str, Bins], data: Iterable[Batch]) -> None:
    """Fit bins by task name in one pass over training batches.

    A task without a single valid label keeps unknown edges.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for batch in data:
        for name, samples in seen.items():
            target, valid = batch.targets[name], batch.valid[name]
            values = target[valid if valid.shape == target.shape else valid.unsqueeze(1)]
            samples.append(values[:: max(1, len(values) // (_VALUES * len(batch)))].cpu())
    for name, samples in seen.items():
        values = torch.cat(samples) if samples else torch.empty(0)
        if len(values):
            wanted[name].fit(values)
