"""The semi-supervised baseline: the prediction on a crop equals the crop of the prediction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.loading import as_seen_in
from mtlcore.ranges import NonNegative
from mtlcore.tasks import Task
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.pairs import images
from mtlcore_mtpsl.weighted import WeightedLoss


@final
class Consistency(WeightedLoss):
    """Mean squared difference of the predictions on a view and on a random crop of it.

    Li, Liu and Bilen, CVPR 2022, section 4: for each sample the mean over its unlabelled tasks u
    (over all tasks where it has all labels) of `MSE(crop(prediction(x)), prediction(crop(x)))`,
    averaged over samples. Compared are probabilities of classes, edges and saliency, unit normals,
    and plain values otherwise (the paper does not say). A crop changes values as it changes labels:
    depth is divided by the enlargement, mirrored normals change sign. Tasks without a value per
    pixel are compared as they are. It learns nothing itself.

    Args:
        weight: of the loss; with 0 there is no second view.
    """

    def __init__(
        self, tasks: Sequence[Task], features: FeatureInfo, *, weight: NonNegative = 1.0
    ) -> None:
        super().__init__(weight, views=2)
        self._tasks = {task.name: task for task in tasks}

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        return {task for _, _, compared in self._pairs(batch, running) for task in compared}

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        values = {
            name: encoding.values(self._tasks[name], raw) for name, raw in predictions.items()
        }
        losses = []
        for first, second, compared in self._pairs(batch, predictions):
            for name in compared:
                expected = values[name][first]
                if self._tasks[name].layout == "map":
                    expected = as_seen_in(self._tasks[name], expected, batch.meta[second])
                losses.append(F.mse_loss(values[name][second], expected) / len(compared))
        if not losses:
            return {}
        return {"consistency": self._weight / images(batch) * torch.stack(losses).sum()}

    def _pairs(self, batch: Batch, running: Iterable[str]) -> Iterator[tuple[int, int, list[str]]]:
        """Yield per sample the rows of its two views and the tasks in which they are compared."""
        there = set(running)
        rows = [[i for i, view in enumerate(batch.view) if view == number] for number in (0, 1)]
        for first, second in zip(*rows, strict=True):
            unlabelled = [task for task in self._tasks if not batch.labelled[task][first]]
            compared = [task for task in unlabelled or self._tasks if task in there]
            if compared:
                yield first, second, compared
