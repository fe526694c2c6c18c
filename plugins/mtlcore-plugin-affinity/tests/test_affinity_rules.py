"""Affinities against steps taken one by one, and training that does not notice them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from mtlcore.config import resolve
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.learner import Learner
from mtlcore.optimizers import Optimizer, StepReport
from mtlcore.plugins import Plugins
from mtlcore.standard.optimizers import adamw, sgd
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore_affinity.optimizer import Affinity

_TASKS = tuple(task.name for task in TINY_TASKS)

_Pairs = dict[tuple[str, str], float]


def _plan(*batches: Batch) -> LoadedPlan:
    episodes = tuple(Episode(_TASKS, support=number) for number in range(len(batches)))
    return LoadedPlan(batches, episodes)


def _affinity(learner: Learner, rate: float = 0.05, **settings: Any) -> Affinity:
    settings = {"optimizer": partial(sgd, lr=0.01), "every": 1, **settings}
    return Affinity(learner, rate=rate, **settings)


def _stepped_one_by_one(
    learner: Learner, batch: Batch, rate: float
) -> dict[tuple[str, str], float]:
    """Return Z(i -> j), each from a copy of the learner that really takes the step."""
    before = {task: loss.item() for task, loss in learner(batch, _TASKS).raw.items()}
    affinities = {}
    for source in before:
        other = copy.deepcopy(learner)
        shared = {id(p) for p in other.model.shared_parameters()}
        other(batch, _TASKS).raw[source].backward()
        with torch.no_grad():
            for parameter in other.parameters():
                if id(parameter) in shared and parameter.grad is not None:
                    parameter -= rate * parameter.grad
            after = other(batch, _TASKS).raw
        for target, loss in before.items():
            if target != source:
                affinities[source, target] = 1 - after[target].item() / loss
    return affinities


def _pairs(report: StepReport) -> _Pairs:
    return {
        (source, metric.removeprefix("affinity/")): value
        for metric, values in report.measured.items()
        for source, value in values.items()
    }


def test_equals_steps_taken_one_by_one() -> None:
    learner, batch = tiny_learner(), tiny_batch(seed=1)
    expected = _stepped_one_by_one(copy.deepcopy(learner), batch, 0.05)
    found = _pairs(_affinity(learner).step(learner, _plan(batch)))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(found) == 6


@pytest.mark.parametrize("every", [1, 3])
def test_training_does_not_notice(every: int) -> None:
    def trained(make: Callable[[Learner], Optimizer]) -> Mapping[str, torch.Tensor]:
        torch.manual_seed(0)
        learner = tiny_learner()
        optimizer = make(learner)
        for number in range(4):
            learner.context.step = number
            optimizer.step(learner, _plan(tiny_batch(seed=number)))
        return {**learner.state_dict(), "random": torch.rand(3)}

    inner = partial(adamw, lr=1e-2)
    plain = trained(inner)
    measured = trained(lambda learner: Affinity(learner, optimizer=inner, every=every))
    assert plain.keys() == measured.keys()
    assert all(
        torch.equal(value, measured[name])
        for name, value in plain.items()
        if isinstance(value, torch.Tensor)
    )


def test_parts_of_a_batch_together_are_the_batch() -> None:
    # Batch norm would tell the parts from the whole.
    one, other = tiny_batch(seed=1), tiny_batch(seed=2)
    learner = tiny_learner()
    learner.model.backbone.eval()
    twice = _pairs(_affinity(learner).step(learner, _plan(one, one)))
    learner = tiny_learner()
    learner.model.backbone.eval()
    once = _pairs(_affinity(learner).step(learner, _plan(one)))
    assert twice == pytest.approx(once, rel=1e-4, abs=1e-7)
    learner = tiny_learner()
    learner.model.backbone.eval()
    mixed = _pairs(_affinity(learner).step(learner, _plan(one, other)))
    assert mixed != pytest.approx(once, rel=1e-2)


def test_a_task_without_labels_has_no_affinity() -> None:
    learner = tiny_learner()
    report = _affinity(learner).step(learner, _plan(tiny_batch(seed=1, absent=("depth",))))
    assert _pairs(report).keys() == {("segmentation", "normals"), ("normals", "segmentation")}


def test_measures_every_so_many_steps_at_the_last_rate() -> None:
    learner = tiny_learner()
    optimizer = Affinity(learner, optimizer=partial(sgd, lr=0.05), every=3)
    measured = []
    for number in range(7):
        learner.context.step = number
        measured.append(bool(optimizer.step(learner, _plan(tiny_batch(seed=number))).measured))
    assert measured == [False, False, False, True, False, False, True]

    learner.context.step = 9
    again = copy.deepcopy(learner)
    at_last = _pairs(optimizer.step(learner, _plan(tiny_batch(seed=9))))
    assert at_last == _pairs(_affinity(again, rate=0.05).step(again, _plan(tiny_batch(seed=9))))


def test_asks_for_what_its_optimizer_asks() -> None:
    learner = tiny_learner()
    optimizer = _affinity(learner)
    assert (optimizer.separates_batches, optimizer.reevaluates) == (True, True)
    assert not optimizer.needs_queries


def test_the_optimizer_is_a_table_of_the_configuration() -> None:
    config = resolve(Plugins.from_environment(), ("tag",), [])
    assert config.tree["optimizer"]["optimizer"]["betas"] == [0.9, 0.999]
