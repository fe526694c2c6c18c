"""Runs whose balancers compare batches: where the batches come from, and that runs resume."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.engine.planning import Planning
from mtlcore.episodes import LoadedPlan
from mtlcore.errors import Interrupted, UsageError
from mtlcore.learner import Learner
from mtlcore.optimizers import GradientDescent, StepReport
from mtlcore.standard.samplers import Joint
from mtlcore.storage import load_checkpoint
from mtlcore.testing.base import changes

pytestmark = pytest.mark.usefixtures("no_pictures")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "compare-batches.md"
TASKS = ("segmentation", "depth")
# Batches of this balancer come from all of those that the page shows.
BOTH = """
from auto_lambda import AutoLambda
from mtlcore import BalancerSpec, hookimpl

class Both(AutoLambda):
    batches = 2

    def weights(self, gramian, context=None):
        assert context.gramians.shape[:2] == (2, 2)
        return super().weights(gramian, context) + context.gramians[0, 1].diagonal().tanh()


@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="both", target=Both, summary="Both.")
"""


#: Where the balancers are that runs take.
FILES = {"two-batches": "modo.py", "look-ahead": "auto_lambda.py", "both": "both.py"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("comparing")
    text = PAGE.read_text("utf-8")
    for name in ("modo", "auto_lambda"):
        pattern = rf"<!-- test: file {name}\.py -->\n```python\n(.*?)^```$"
        found = re.search(pattern, text, re.M | re.S)
        assert found is not None
        (folder / f"{name}.py").write_text(found[1])
    (folder / "both.py").write_text(BOTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def run(work: Path, out: str, name: str, resume: bool = False, **more: Any) -> dict[str, Any]:
    """Two epochs of three steps, the last of them with a batch that is left over."""
    config = {
        "tasks": list(TASKS),
        "device": "cpu",
        "data": {"train": 14, "val": 5, "size": [32, 32], "workers": 0,
                 "augment": {"flip": True}},
        "model": {"backbone": {"width": 0.03125}},
        "balancer": {"name": name},
        "training": {"epochs": 2, "batch_size": 2, "threads": 1, "evaluate_every": 1},
        **more,
    }  # fmt: skip
    plugins = [str(work / FILES[name])]
    return mtlcore.run(config, plugins=plugins, out=str(work / out), resume=resume)


def state(run: Path) -> dict[str, Any]:
    found = load_checkpoint(run / "checkpoints" / "last.safetensors")
    return {part: found[part] for part in ("learner", "optimizer", "plans", "random", "ranks")}


def test_a_run_resumes_within_an_epoch(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, plans = GradientDescent.step, list[LoadedPlan]()

    def watched(self: GradientDescent, learner: Learner, plan: LoadedPlan) -> StepReport:
        plans.append(plan)
        if strike == learner.context.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, learner, plan)

    monkeypatch.setattr(GradientDescent, "step", watched)
    strike = -1
    run(work, "whole", "both")
    assert [len(plan.episodes) for plan in plans] == [2, 2, 3] * 2
    assert all({e.group for e in plan.episodes} == {0, 1} for plan in plans)
    assert all(len(plan.validation) == 1 for plan in plans)
    strike = 4
    with pytest.raises(Interrupted):
        run(work, "parts", "both")
    strike = -1
    run(work, "parts", "both", resume=True)
    found = state(work / "whole")
    assert not changes(found, state(work / "parts"))
    kept = found["learner"]["balancing.balancers.0.state._extra_state"]
    assert set(kept) == set(TASKS)


def test_an_optimizer_of_its_own_sort_refuses(work: Path) -> None:
    for name in ("two-batches", "look-ahead"):
        with pytest.raises(UsageError, match="optimizer mtml takes its steps from one"):
            run(
                work,
                "mtml",
                name,
                tasks=["segmentation", "depth", "normals"],
                optimizer={"name": "mtml"},
                episodes={"name": "task-powerset"},
            )


def test_an_epoch_must_have_enough_batches(work: Path) -> None:
    training = {"epochs": 1, "batch_size": 20, "threads": 1}
    with pytest.raises(UsageError, match="needs 2 independent batches, and an epoch has 1"):
        run(work, "few", "two-batches", training=training)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("batches", "size"), [(1, 11), (2, 11), (2, 12), (3, 11), (5, 11)])
def test_an_epoch_shows_each_sample_once(batches: int, size: int, accumulate: int) -> None:
    planning = Planning(Joint(TASKS, {"train": size}), 0, 1, accumulate, batches)
    for _ in range(2):
        steps = planning.draw(TASKS)
        assert planning.ends_epoch and len(steps) == planning.steps_per_epoch
        shown = [i for step in steps for batch in step.batches for i in batch.indices]
        assert sorted(shown) == list(range(size))
        for step in steps:
            assert [e.support for e in step.episodes] == list(range(len(step.batches)))
            assert {e.group for e in step.episodes} == set(range(batches))
        assert {len(step.batches) for step in steps[:-1]} <= {accumulate * batches}
        assert len(steps[-1].batches) < (accumulate + 1) * batches
        planning.begin(0)


@pytest.mark.parametrize(("split", "size", "sizes"), [("val", 20, [3, 3]), ("val", 4, [3, 1])])
def test_the_validation_batch_has_a_stream_of_its_own(
    split: str, size: int, sizes: list[int]
) -> None:
    def planning(validation: tuple[str, int] | None) -> Planning:
        return Planning(Joint(TASKS, {"train": 24}), 3, 3, 2, 2, validation)

    plain, other = planning(None), planning((split, size))
    drawn = []
    for _ in range(3):
        steps = other.draw(TASKS)
        for one, two in zip(plain.draw(TASKS), steps, strict=True):
            assert one.episodes == two.episodes and one.batches == two.batches[:4]
            validation = [two.batches[episode.support] for episode in two.validation]
            assert [len(batch.indices) for batch in validation] == sizes
            assert all(e.tasks == TASKS for e in two.validation)
            indices = [i for batch in validation for i in batch.indices]
            assert len(set(indices)) == len(indices) and set(indices) <= set(range(size))
            assert {(batch.split, batch.augment) for batch in validation} == {(split, False)}
            drawn.append(tuple(indices))
        plain.begin(0)
        other.begin(0)
        resumed = planning((split, size))
        resumed.load_state_dict(other.state_dict())
        assert resumed.draw(TASKS) == planning_again(other).draw(TASKS)
    assert len(set(drawn)) > 1


def planning_again(planning: Planning) -> Planning:
    """Return a copy that draws what this one would, and leaves it as it is."""
    again = Planning(Joint(TASKS, {"train": 24}), 3, 3, 2, 2, planning._validation)
    again._generator.set_state(planning._generator.get_state())
    again._validation_generator.set_state(planning._validation_generator.get_state())
    return again


def test_training_samples_as_validation_are_augmented() -> None:
    planning = Planning(Joint(TASKS, {"train": 24}), 3, 3, 1, 1, ("train", 24))
    step = planning.draw(TASKS)[0]
    (episode,) = step.validation
    batch = step.batches[episode.support]
    assert batch.split == "train" and batch.augment and len(batch.indices) == 3
    assert batch.seed != step.batches[0].seed
