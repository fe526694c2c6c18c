"""Balancers that are asked every few steps only: what applies between two updates."""

from __future__ import annotations

import attrs
import pytest
import torch

from mtlcore.balancing import Balancing, GramianBalancer
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.standard.optimizers import sgd
from mtlcore.testing import tiny_batch, tiny_learner
from mtlcore.testing.base import same, state_of, through_checkpoint


class Given(GramianBalancer):
    """The weights it was made with; counts how often it is asked."""

    def __init__(self, weights):
        super().__init__()
        self.given = torch.as_tensor(weights, dtype=torch.float64)
        self.asked = 0
        self.gramian = None

    def weights(self, gramian, context=None):
        self.asked += 1
        self.gramian = gramian.clone()
        return self.given[..., : len(gramian)].clone()


class Norms(GramianBalancer):
    """Tasks pull alike; heads weigh something else. Counts how often it is asked."""

    asked = 0

    def weights(self, gramian, context=None):
        self.asked += 1
        inverse = gramian.diagonal().rsqrt()
        return torch.stack([inverse, 1 + inverse])


class Steps:
    """A learner under `Norms`, asked every three steps, and the passes through its trunk."""

    def __init__(self, seed=0, scope="shared"):
        self.norms = Norms()
        self.norms.scope = scope
        self.learner = tiny_learner([self.norms], seed=seed, update_every=3)
        self.optimizer = sgd(self.learner, lr=1e-2, momentum=0.9)
        self.passes = 0
        self.learner.model.backbone.trunk.register_forward_hook(self._watch)

    def _watch(self, module, inputs, output):
        output.register_hook(self._count)

    def _count(self, gradient):
        self.passes += 1

    def take(self, step, absent=()):
        """One step; the passes that it took and its report."""
        self.passes, self.learner.context.step = 0, step
        batches = tuple(tiny_batch(seed=2 * step + n, absent=absent) for n in range(2))
        plan = LoadedPlan(batches, (Episode(self.learner.tasks, 0), Episode(self.learner.tasks, 1)))
        report = self.optimizer.step(self.learner, plan)
        assert report.skipped is None
        return self.passes, report


def test_between_updates_one_pass_goes_through_the_trunk():
    steps = Steps()
    taken = [steps.take(number) for number in range(7)]
    # Of each of two micro-batches: three rows, or one sum.
    assert [passes for passes, _ in taken] == [6, 2, 2, 6, 2, 2, 6]
    assert steps.norms.asked == 3
    weights = [report.balancing.weights for _, report in taken]
    assert weights[0] == weights[1] == weights[2] != weights[3] == weights[4]
    assert [bool(report.balancing.cosines) for _, report in taken[:4]] == [True, False, False, True]


@pytest.mark.parametrize("scope", ["shared", "features"])
def test_between_updates_the_last_weights_apply(scope):
    one, other = Steps(scope=scope), Steps(scope=scope)
    _, report = one.take(0)
    other.take(0)
    last = [[*report.balancing.weights.values()], [*report.balancing.heads.values()]]
    one.take(1)
    given = Given(last)
    other.learner.balancing = Balancing([given])
    other.take(1)
    assert given.asked == 1
    pairs = zip(one.learner.parameters(), other.learner.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_steps_between_updates_come_back(number):
    """Saved anywhere between two updates, the run goes on bit for bit."""
    steps, resumed = Steps(), Steps(seed=1)
    for step in range(number):
        steps.take(step)
    state = through_checkpoint(
        {"learner": dict(steps.learner.state_dict()), "optimizer": steps.optimizer.state_dict()}
    )
    resumed.learner.load_state_dict(state["learner"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    for step in range(number, 8):
        (passes, report), (others, other) = steps.take(step), resumed.take(step)
        assert passes == others
        assert same(attrs.asdict(report), attrs.asdict(other))
        assert same(state_of(steps.learner), state_of(resumed.learner))


def test_every_task_is_asked_about_before_weights_are_reused():
    steps = Steps()
    for number, absent, passes in (
        (0, ("depth",), 4),
        (1, ("depth",), 4),  # nothing is known of depth yet
        (2, (), 6),
        (4, ("depth",), 2),
        (6, ("depth",), 4),
        (7, (), 2),  # depth keeps the weight that it had
    ):
        assert steps.take(number, absent)[0] == passes
    steps.learner.balancing.reset()
    assert steps.take(8)[0] == 6
