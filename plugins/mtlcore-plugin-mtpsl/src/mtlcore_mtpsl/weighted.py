"""What the cross-task losses of this plugin share: a weight, and whose predictions they read."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import Features
from mtlcore.losses import CrossTaskLoss


class WeightedLoss(CrossTaskLoss):
    """A cross-task loss that is switched off by a weight of 0: no second view, no heads, no terms.

    Args:
        weight: of the loss.
        views: of each image, where the weight is not 0.
    """

    def __init__(self, weight: float, views: int) -> None:
        super().__init__()
        self.views = views if weight else 1
        self._weight = weight

    @abc.abstractmethod
    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        """Return the tasks whose predictions are read.

        Args:
            batch: with samples of `views` views.
            running: the tasks whose heads can run.
        """

    @abc.abstractmethod
    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the terms, as `forward` does where the weight is not 0."""

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return those of `tasks` whose predictions the loss reads, in their order."""
        sources = self._sources(batch, tasks) if self._weight else ()
        return [task for task in tasks if task in sources]

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the terms, scalars by name; none where nothing applies or the weight is 0."""
        return self._terms(batch, features, predictions) if self._weight else {}
