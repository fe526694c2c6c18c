"""The plans of a run, drawn a block at a time, and what it takes to draw a block again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import torch

from mtlcore.episodes import (
    BatchPlan,
    EpisodeSampler,
    StepPlan,
    StepSampler,
    joined,
    with_validation,
)
from mtlcore.errors import UsageError

# Of the validation batches: other than the seed of training plans.
_VALIDATION = 0x56414C


@final
class Planning:
    """Draws the plans of a run, in blocks of as many steps as the sampler plans ahead.

    A step is made of the next `accumulate` plans for each of its independent batches, so that an
    epoch, which shows each sample as often as the sampler plans it, has fewer steps the more
    batches a step needs. Plans that are too few for a step of their own join the last one. The
    validation batch of a step is drawn from its split anew for each step, as large as each of the
    others, by a generator of its own: with it and without it, the same plans are drawn.

    A checkpoint may be written in the middle of a block. It holds the states of sampler and
    generators from before the block, which draw its plans again, and what the sampler has learnt
    since.

    Args:
        sampler: Plans the steps.
        seed: Of the plans; the same on every rank.
        batch_size: Samples of a batch over all processes.
        accumulate: Number of plans that make one batch.
        batches: Number of independent batches of a step.
        validation: Split of its validation batch and the number of samples there; None: it has
            none.

    Attributes:
        steps_per_epoch: Number of steps of an epoch.
        first: Number of the block's first step in its epoch, from 0.

    Raises:
        UsageError: The sampler has a horizon and cannot plan single steps, or an epoch has too few
            plans for one step.
    """

    def __init__(
        self,
        sampler: EpisodeSampler,
        seed: int,
        batch_size: int,
        accumulate: int,
        batches: int = 1,
        validation: tuple[str, int] | None = None,
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
        self._batches, self._validation = batches, validation
        self._validation_generator = torch.Generator().manual_seed(seed ^ _VALIDATION)
        self._plans_per_epoch = sampler.steps(batch_size)
        if batches > 1 and self._plans_per_epoch < batches:
            raise UsageError(
                f"balancer: each step needs {batches} independent batches, and an epoch has "
                f"{self._plans_per_epoch}; use more samples (data.train) or a smaller "
                "training.batch_size"
            )
        full, left = divmod(self._plans_per_epoch, accumulate * batches)
        self.steps_per_epoch: int = full + (left >= batches)
        # What the sampler has learnt since a block was drawn, until that block is drawn again.
        self._learnt: dict[str, Any] | None = None
        self.begin(0)

    def begin(self, first: int) -> None:
        """Start the block whose first step has this number in its epoch."""
        self.first, self._is_drawn = first, False
        self._generator_before = self._generator.get_state()
        self._validation_before = self._validation_generator.get_state()
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
        # Where each step begins among the plans of the epoch, and where the last one ends.
        bounds = [self._begin(number) for number in range(self.first, self._end + 1)]
        if sampler.horizon is None:
            plans = list(sampler.epoch(tasks, self._batch_size, self._generator))
        else:
            assert isinstance(sampler, StepSampler)
            plans = [
                sampler.plan(number, tasks, self._batch_size, self._generator)
                for number in range(bounds[0], bounds[-1])
            ]
        if self._learnt is not None:
            sampler.load_state_dict(self._learnt)
            self._learnt = None
        self._is_drawn = True
        steps = [
            joined(plans[begin - bounds[0] : end - bounds[0]], self._batches)
            for begin, end in pairwise(bounds)
        ]
        if self._validation is None:
            return steps
        return [with_validation(step, self._validation_batches(), tasks) for step in steps]

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to draw the block again and go on."""
        return {
            "first": self.first,
            "generator": self._generator_before,
            "validation": self._validation_before,
            "sampler": self._sampler_before,
            "learnt": self._sampler.state_dict() if self._is_drawn else self._learnt,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._generator.set_state(state["generator"])
        self._validation_generator.set_state(state["validation"])
        self._sampler.load_state_dict(state["sampler"])
        self.begin(state["first"])
        self._learnt = state["learnt"]

    @property
    def _end(self) -> int:
        horizon = self._sampler.horizon
        last = self.steps_per_epoch
        return last if horizon is None else min(self.first + horizon, last)

    def _begin(self, step: int) -> int:
        """Return the number of a step's first plan in its epoch."""
        if step == self.steps_per_epoch:
            return self._plans_per_epoch
        return step * self._accumulate * self._batches

    def _validation_batches(self) -> list[BatchPlan]:
        """Draw the parts of a step's validation batch: different samples in random order."""
        assert self._validation is not None
        split, size = self._validation
        generator, wanted = self._validation_generator, self._accumulate * self._batch_size
        order = torch.randperm(size, generator=generator)[:wanted].tolist()
        parts = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        seeds = torch.randint(2**62, (len(parts),), generator=generator).tolist()
        return [
            BatchPlan(split, tuple(part), seed, augment=split == "train")
            for part, seed in zip(parts, seeds, strict=True)
        ]
