"""The plans of a run, drawn a block at a time, and what it takes to draw a block again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from mtlcore.episodes import EpisodeSampler, StepPlan, StepSampler, accumulated
from mtlcore.errors import UsageError


@final
class Planning:
    """Draws the plans of a run, in blocks of as many steps as the sampler plans ahead.

    A checkpoint may be written in the middle of a block. It holds the states of sampler and
    generator from before the block, which draw its plans again, and what the sampler has learnt
    since.

    Args:
        sampler: Plans the steps.
        seed: Of the plans; the same on every rank.
        batch_size: Samples of a batch over all processes.
        accumulate: Number of plans that make one step.

    Attributes:
        steps_per_epoch: Number of steps of an epoch.
        first: Number of the block's first step in its epoch, from 0.

    Raises:
        UsageError: The sampler has a horizon and cannot plan single steps.
    """

    def __init__(
        self, sampler: EpisodeSampler, seed: int, batch_size: int, accumulate: int
    ) -> None:
        name, horizon = type(sampler).__name__, sampler.horizon
        if horizon is not None and not isinstance(sampler, StepSampler):
            raise UsageError(
                f"episodes: {name}.horizon is {horizon}, but {name} plans whole epochs; make it a "
                "StepSampler"
            )
        if horizon is not None and horizon < 1:
            raise UsageError(f"episodes: {name}.horizon: {horizon} is not a number of steps")
        self._sampler = sampler
        self._generator = torch.Generator().manual_seed(seed)
        self._batch_size, self._accumulate = batch_size, accumulate
        self._plans_per_epoch = sampler.steps(batch_size)
        self.steps_per_epoch: int = -(-self._plans_per_epoch // accumulate)
        # What the sampler has learnt since a block was drawn, until that block is drawn again.
        self._learnt: dict[str, Any] | None = None
        self.begin(0)

    def begin(self, first: int) -> None:
        """Start the block whose first step has this number in its epoch."""
        self.first, self._is_drawn = first, False
        self._generator_before = self._generator.get_state()
        self._sampler_before = copy.deepcopy(self._sampler.state_dict())

    @property
    def ends_epoch(self) -> bool:
        """Whether the block is the last one of its epoch."""
        return self._end == self.steps_per_epoch

    def draw(self, tasks: Sequence[str]) -> list[StepPlan]:
        """Return the steps of the block.

        Args:
            tasks: Names of the tasks that are still learning.
        """
        sampler = self._sampler
        if sampler.horizon is None:
            plans = list(sampler.epoch(tasks, self._batch_size, self._generator))
        else:
            assert isinstance(sampler, StepSampler)
            begin, end = self.first * self._accumulate, self._end * self._accumulate
            plans = [
                sampler.plan(number, tasks, self._batch_size, self._generator)
                for number in range(begin, min(end, self._plans_per_epoch))
            ]
        if self._learnt is not None:
            sampler.load_state_dict(self._learnt)
            self._learnt = None
        self._is_drawn = True
        return accumulated(plans, self._accumulate)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to draw the block again and go on."""
        return {
            "first": self.first,
            "generator": self._generator_before,
            "sampler": self._sampler_before,
            "learnt": self._sampler.state_dict() if self._is_drawn else self._learnt,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._generator.set_state(state["generator"])
        self._sampler.load_state_dict(state["sampler"])
        self.begin(state["first"])
        self._learnt = state["learnt"]

    @property
    def _end(self) -> int:
        horizon = self._sampler.horizon
        last = self.steps_per_epoch
        return last if horizon is None else min(self.first + horizon, last)
