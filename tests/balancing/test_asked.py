"""What is asked about the length of a run, and what of it another length would have changed."""

from __future__ import annotations

import json

import pytest

from mtlcore.balancing import Asked, BalancerContext
from mtlcore.optimizers import Schedule


def steps(schedule: Schedule, total: int, done: int) -> Asked:
    """What a schedule asks in the first steps of a run."""
    context = BalancerContext(tasks=())
    for step in range(done):
        context.step, context.progress = step, step / total
        schedule.factor(context)
    return context.asked


@pytest.mark.parametrize("done", [1, 4, 5, 9, 10])
@pytest.mark.parametrize("total", [11, 14, 20, 40])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(name="plateau"),
        Schedule(name="step", at=(0.5, 0.9)),
        Schedule(name="step", at=(0.0, 1.0)),
        Schedule(name="cosine"),
        Schedule(name="poly"),
        Schedule(warmup=0.3),
    ],
    ids=str,
)
def test_it_differs_exactly_where_a_rate_does(schedule: Schedule, total: int, done: int) -> None:
    """Those that follow the fraction itself differ from the second step on."""

    def rates(length: int) -> list[float]:
        context = BalancerContext(tasks=())
        found = []
        for step in range(done):
            context.step, context.progress = step, step / length
            found.append(schedule.factor(context))
        return found

    differences = steps(schedule, 10, done).differences(done, 10, total)
    follows = schedule.name in ("cosine", "poly") or schedule.warmup > 0
    assert bool(differences) == (rates(10) != rates(total) or follows)
    if differences:
        assert all(line.startswith("optimizer.schedule") for line in differences)


def test_a_shorter_run_differs_where_a_point_would_have_come() -> None:
    asked = steps(Schedule(name="step", at=(0.5,)), 20, 6)
    assert asked.differences(6, 20, 13) == []
    assert asked.differences(6, 20, 8) == [
        "optimizer.schedule: 0.5 of the run has not come, and would come at step 4"
    ]


def test_who_reads_it_is_named_by_the_module() -> None:
    context = BalancerContext(tasks=(), progress=0.25, step=3)
    assert context.progress == 0.25 and context.reached(0.2) and not context.reached(0.3)
    assert context.asked.values == {__name__: 3}
    assert context.asked.reached == {__name__: {"0.2": 3, "0.3": -1}}


def test_it_comes_back_from_a_checkpoint() -> None:
    asked = steps(Schedule(name="step", at=(0.1, 1 / 3), warmup=0.2), 10, 5)
    asked.evaluated("episodes")
    assert Asked.of(json.loads(json.dumps(asked.to_json()))) == asked
