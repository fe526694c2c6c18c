"""Plans are drawn a block at a time, and a block that was begun can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.engine.planning import Planning
from mtlcore.episodes import BatchPlan, Episode, EpisodeSampler, StepPlan, StepSampler
from mtlcore.errors import UsageError
from mtlcore.standard.samplers import Joint

TASKS = ("depth", "normals")


class Counting(StepSampler):
    """Ten plans in an epoch, in an order drawn at its start; seeds are what it has learnt so far.

    Args:
        horizon: of the plans.
    """

    def __init__(self, horizon: int | None) -> None:
        self.horizon = horizon
        self.order: list[int] = []
        self.learnt = 0

    def steps(self, batch_size: int) -> int:
        return 10

    def plan(
        self, number: int, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> StepPlan:
        if number == 0:
            self.order = torch.randperm(10, generator=generator).tolist()
        batch = BatchPlan("train", (self.order[number],), self.learnt)
        return StepPlan((batch,), (Episode(tuple(tasks), 0),))

    def after_step(self, context: BalancerContext) -> None:
        self.learnt += 1

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "learnt": self.learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.learnt = state["order"], state["learnt"]


def seeds(steps: Sequence[StepPlan]) -> list[list[int]]:
    return [[batch.seed for batch in step.batches] for step in steps]


@pytest.mark.parametrize(
    ("horizon", "accumulate", "sizes"),
    [(None, 1, [10]), (1, 1, [1] * 10), (4, 1, [4, 4, 2]), (10, 1, [10]), (99, 1, [10]),
     (None, 4, [3]), (1, 4, [1, 1, 1]), (2, 4, [2, 1]), (3, 3, [3, 1])],
)  # fmt: skip
def test_blocks_make_an_epoch(horizon: int | None, accumulate: int, sizes: list[int]) -> None:
    sampler = Counting(horizon)
    planning = Planning(sampler, 0, batch_size=1, accumulate=accumulate)
    context = BalancerContext(tasks=TASKS)
    for _ in range(2):
        drawn: list[StepPlan] = []
        found = []
        while True:
            begun = sampler.learnt
            block = planning.draw(TASKS)
            assert {seed for step in seeds(block) for seed in step} == {begun}
            for _ in block:
                sampler.after_step(context)
            found.append(len(block))
            drawn += block
            if planning.ends_epoch:
                break
            planning.begin(len(drawn))
        assert found == sizes
        assert len(drawn) == planning.steps_per_epoch
        indices = [batch.indices[0] for step in drawn for batch in step.batches]
        assert sorted(indices) == list(range(10))
        planning.begin(0)


def taken(planning: Planning, sampler: Counting, done: int, until: int) -> list[list[int]]:
    """Take the steps from `done` to `until` as the loop does; their samples and seeds."""
    found: list[list[int]] = []
    while True:
        for step in planning.draw(TASKS)[done - planning.first :]:
            found += [[batch.indices[0], batch.seed] for batch in step.batches]
            sampler.after_step(BalancerContext(tasks=TASKS))
            done += 1
            if done == until:
                return found
        planning.begin(done)


@pytest.mark.parametrize("horizon", [None, 1, 4])
@pytest.mark.parametrize("left", [1, 2, 4, 5, 9])
def test_a_block_is_drawn_again_and_what_was_learnt_stays(horizon: int | None, left: int) -> None:
    sampler, stopped, resumed = Counting(horizon), Counting(horizon), Counting(horizon)
    whole = taken(Planning(sampler, 3, 1, 1), sampler, 0, 10)
    planning = Planning(stopped, 3, 1, 1)
    first = taken(planning, stopped, 0, left)
    later = Planning(resumed, 99, 1, 1)
    later.load_state_dict(planning.state_dict())
    # A checkpoint that is written before the block is drawn again holds the same.
    assert later.state_dict()["learnt"] == planning.state_dict()["learnt"]
    assert first + taken(later, resumed, left, 10) == whole
    assert resumed.state_dict() == sampler.state_dict()


def test_a_checkpoint_between_blocks_keeps_what_planning_changes() -> None:
    sampler = Counting(4)
    planning = Planning(sampler, 0, 1, 1)
    resumed = Counting(4)
    later = Planning(resumed, 1, 1, 1)
    later.load_state_dict(planning.state_dict())
    assert later.draw(TASKS) == planning.draw(TASKS)
    # The order was drawn with the block; nothing older is laid over it.
    assert resumed.order == sampler.order != []


def test_a_state_is_not_changed_by_later_steps() -> None:
    sampler = Counting(4)
    planning = Planning(sampler, 0, 1, 1)
    planning.draw(TASKS)
    planning.begin(4)
    before = planning.state_dict()["sampler"]
    sampler.order.reverse()
    assert planning.state_dict()["sampler"] == before != sampler.state_dict()


class Hasty(Joint):
    horizon = 2


@pytest.mark.parametrize(
    ("sampler", "told"),
    [(Hasty(TASKS, {"train": 4}), "Hasty.horizon is 2.*StepSampler"),
     (Counting(0), "Counting.horizon: 0")],
)  # fmt: skip
def test_a_horizon_that_cannot_be_kept_is_refused(sampler: EpisodeSampler, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Planning(sampler, 0, 1, 1)
