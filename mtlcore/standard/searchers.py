"""The searcher that needs nothing: settings drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, final

from mtlcore.searchers import Searcher, Space, Trial


@final
class Random(Searcher):
    """Draws every setting by itself, whatever became of earlier trials.

    With few settings that count it is hard to beat by a grid: Bergstra and Bengio, Random Search
    for Hyper-Parameter Optimization, JMLR 2012.

    Args:
        space: The settings to draw.
        objectives: How many values a trial has; any number.
        seed: Of the draws.
    """

    def __init__(self, space: Space, objectives: int, seed: int) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int, trials: Sequence[Trial]) -> Mapping[str, Any]:
        """Draw the values of a trial."""
        drawn = random.Random(f"{self._seed}/{number}")
        return {path: setting.at(drawn.random()) for path, setting in self._space.items()}
