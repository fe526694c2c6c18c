"""What the core tells a balancer of a step, and what it keeps for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.balancing import (
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
    Tentative,
)
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import MtlError
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.storage import load_checkpoint
from mtlcore.testing import tiny_batch, tiny_learner

TASKS = ("segmentation", "depth", "normals")

PLUGIN = '''
import torch
from mtlcore import BalancerSpec, hookimpl
from mtlcore.balancing import GramianBalancer, Tentative


class Running(GramianBalancer):
    """Weights by a running mean of the norms, which the step that makes it uses already."""

    def __init__(self):
        super().__init__()
        self.state, self.last = Tentative(), None

    def weights(self, gramian, context=None):
        norms = gramian.diagonal().sqrt()
        before = self.state.get("norms", like=norms)
        norms = norms if before is None else 0.7 * before + 0.3 * norms
        self.state.propose("norms", norms)
        return norms.mean() / norms

    def after_step(self, context):
        self.state.commit()
        self.last = None if context.gramian is None else context.gramian.clone()

    def get_extra_state(self):
        return {"last": self.last}

    def set_extra_state(self, state):
        self.last = state["last"]


class Late(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.ones(len(gramian), dtype=torch.float64)

    def after_step(self, context):
        self.register_buffer("made_late", context.gramian.diagonal().clone())


@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="running", target=Running, summary="Running.")
    yield BalancerSpec(name="late", target=Late, summary="Late.")
'''


def descend(learner, lr: float = 0.1) -> GradientDescent:
    return GradientDescent(
        learner, lambda groups: torch.optim.SGD(groups, lr=lr), Schedule(), clip=None
    )


class Watching(GramianBalancer):
    """Remembers what it is told after a step."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        self.asked = gramian.clone()
        return torch.ones(len(gramian), dtype=torch.float64)

    def after_step(self, context: BalancerContext) -> None:
        self.told, self.rows = context.gramian, context.present


def test_the_gramian_is_there_after_a_step() -> None:
    balancer = Watching()
    learner = tiny_learner([balancer])
    plan = LoadedPlan((tiny_batch(), tiny_batch()), (Episode(TASKS, 0), Episode(TASKS, 1)))
    assert descend(learner).step(learner, plan).skipped is None
    assert torch.equal(balancer.told, balancer.asked)
    assert balancer.rows == TASKS


def test_there_is_none_between_two_updates() -> None:
    balancer = Watching()
    learner = tiny_learner([balancer], update_every=2)
    optimizer, plan = descend(learner), LoadedPlan((tiny_batch(),), (Episode(TASKS, 0),))
    seen = []
    for number in range(3):
        learner.context.step = number
        optimizer.step(learner, plan)
        seen.append(balancer.told is not None)
    assert seen == [True, False, True]


class Looking(LossBalancer):
    """Asks what the losses are after the update."""

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        if context.generator is not None:
            torch.rand(1, generator=context.generator)
        return losses

    def after_step(self, context: BalancerContext) -> None:
        assert context.reevaluate is not None
        self.before, self.after = dict(context.losses), context.reevaluate()


def test_losses_can_be_had_once_more() -> None:
    """On the same samples, at the updated parameters, and without a trace."""
    balancer = Looking()
    learner = tiny_learner([balancer])
    learner.context.generator = torch.Generator().manual_seed(0)
    batches = (tiny_batch(), tiny_batch())
    plan = LoadedPlan(batches, (Episode(TASKS, 0), Episode(TASKS, 1)))
    optimizer = descend(learner)
    states: list[Any] = []
    reevaluate = learner.evaluate_losses

    def watched(batch, tasks):
        before = ({n: b.clone() for n, b in learner.named_buffers()},
                  learner.context.generator.get_state(), torch.get_rng_state())  # fmt: skip
        found = reevaluate(batch, tasks)
        after = (dict(learner.named_buffers()), learner.context.generator.get_state(),
                 torch.get_rng_state())  # fmt: skip
        assert all(torch.equal(before[0][n], after[0][n]) for n in before[0])
        assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
        states.append(found)
        return found

    learner.evaluate_losses = watched
    optimizer.step(learner, plan)
    expected = {task: sum(found[task] for found in states) / 2 for task in TASKS}
    assert balancer.after == pytest.approx(expected)
    assert all(balancer.after[task] != balancer.before[task] for task in TASKS)
    # The next step begins where the re-evaluation was.
    optimizer.step(learner, plan)
    assert balancer.before == pytest.approx(expected, rel=1e-5)


def test_losses_of_partly_labelled_plans_stay_on_their_scale() -> None:
    """A batch without a task's labels has no part in its mean, before and after."""
    balancer = Looking()
    learner = tiny_learner([balancer], normalisation="sample")
    batches = (tiny_batch(), tiny_batch(absent=["depth"]))
    plan = LoadedPlan(batches, (Episode(TASKS, 0), Episode(TASKS, 1)))
    optimizer = descend(learner)
    optimizer.step(learner, plan)
    after = balancer.after
    optimizer.step(learner, plan)
    assert balancer.before == pytest.approx(after, rel=1e-5)


class Heads(GradientBalancer):
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.sum(0)

    def head_weights(self, context: BalancerContext | None = None) -> Tensor:
        return torch.tensor([2.0, 0.5, 3.0])

    def current_weights(self) -> dict[str, float]:
        return {"depth": 0.25}


def gradients(balancer: GradientBalancer) -> dict[str, Tensor]:
    learner = tiny_learner([balancer])
    batch = tiny_batch()
    losses = learner(batch, TASKS)
    collected = learner.task_gradients()
    collected.collect_rows(losses.balanced)
    learner.context.present = TASKS
    collected.apply(balancer, learner.context)
    return {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None}


def test_a_balancer_of_gradients_may_weigh_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = gradients(Heads())
    monkeypatch.setattr(Heads, "head_weights", GradientBalancer.head_weights)
    plain = gradients(Heads())
    factors = {"segmentation": 2.0, "depth": 0.5, "normals": 3.0}
    for name, gradient in plain.items():
        # Of heads, and of what else belongs to one task alone.
        factor = next((factors[task] for task in TASKS if f".task_{task}." in name), 1.0)
        torch.testing.assert_close(weighed[name], factor * gradient, msg=name)
    assert any(name.startswith("heads.") for name in plain)


def test_a_proposal_is_kept_only_when_it_is_committed() -> None:
    state = Tentative()
    state.propose("a", torch.ones(2))
    assert state.get("a", like=torch.zeros(1)) is None
    state.discard()
    state.commit()
    assert state.get("a", like=torch.zeros(1)) is None
    state.propose("a", torch.ones(2))
    state.commit()
    state.propose("a", torch.zeros(2))
    kept = state.get("a", like=torch.zeros(1, dtype=torch.float64))
    assert kept is not None and kept.tolist() == [1, 1] and kept.dtype == torch.float64


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "watchers.py"
    file.write_text(PLUGIN)
    return str(file)


def config(plugin: str, name: str, steps: int, **balancer: Any) -> dict[str, Any]:
    return {
        "plugins": [plugin],
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "balancer": {"name": name, **balancer},
        "training": {"epochs": steps, "batch_size": 4, "threads": 1, "evaluate_every": 9},
    }


@pytest.mark.parametrize("every", [1, 2])
def test_tensors_of_a_balancer_resume_bit_for_bit(
    tmp_path: Path, plugin: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(plugin, "running", 5, update_every=every)
    mtlcore.run(settings, out=str(tmp_path / "whole"))
    from mtlcore.engine import Training

    epoch = Training._end_epoch

    def stop_after_two(self: Training) -> None:
        epoch(self)
        if self.session.progress.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_end_epoch", stop_after_two)
        with pytest.raises(MtlError):
            mtlcore.run(settings, out=str(tmp_path / "parts"))
    mtlcore.run(settings, out=str(tmp_path / "parts"), resume=True)
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.safetensors")["learner"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, parts[name]), name
    state = whole["balancing.balancers.0._extra_state"]
    assert (state["last"] is None) == (every == 2 and (5 - 1) % 2 == 1)
    kept = whole["balancing.balancers.0.state._extra_state"]["norms"]
    assert torch.equal(kept, parts["balancing.balancers.0.state._extra_state"]["norms"])


def test_a_buffer_that_is_made_too_late_is_explained(tmp_path: Path, plugin: str) -> None:
    out = tmp_path / "run"
    mtlcore.run(config(plugin, "late", 1), out=str(out))
    (out / "summary.json").unlink()
    with pytest.raises(MtlError) as caught:
        mtlcore.run(config(plugin, "late", 1), out=str(out), resume=True)
    for part in ("made_late", "Late", "prepare", "get_extra_state"):
        assert part in str(caught.value)
