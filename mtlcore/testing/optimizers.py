"""What holds for every optimizer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mtlcore.balancing import Balancer, BalancerContext, GramianBalancer, LossBalancer
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.features import Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss, Loss
from mtlcore.models import BackboneRates, StepContext
from mtlcore.optimizers import Optimizer, StepReport
from mtlcore.standard.balancers import Uncertainty
from mtlcore.testing.base import changes, close, same, state_of, through_checkpoint
from mtlcore.testing.tiny import tiny_batch, tiny_learner

_PATIENCE = 15  # evaluations; the schedule's own default is 10


class _Counter(LossBalancer):
    """Counts the steps it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        return losses

    def after_step(self, context: BalancerContext) -> None:
        self.steps += 1

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class _Mean(GramianBalancer):
    """The mean of the gradients."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


class _One(GramianBalancer):
    """The gradient of one task alone.

    Args:
        number: of the task.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        return torch.eye(len(gramian), dtype=torch.float64)[self._number]


class _Comparing(GramianBalancer):
    """Weighs equally, and keeps what it is shown of its batches."""

    batches = 2
    validation = "val"

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        self.gramians, self.products = context.gramians, context.validation_products
        return torch.ones(len(gramian), dtype=torch.float64)


class _Kink(Loss):
    """Zero, with a gradient that is not a number."""

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - prediction.detach()).square().sum(1).sqrt()


class _Listener(CrossTaskLoss):
    """Has no terms, and counts the steps that it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Sequence[str]:
        return ()

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {}

    def after_step(self, context: StepContext) -> None:
        self.steps += 1


class OptimizerContract:
    """Subclass it, write `make`, and pytest checks the optimizer on a learner of three tasks.

    Let `make` use momentum and weight decay where there are any: they are what a task without
    labels may be moved by.

    Attributes:
        groups_count: whether the learning rate of a group is all that its parameters move by; False
            for an optimizer that also takes steps of another sort.
    """

    groups_count: bool = True

    def make(self, learner: Learner) -> Optimizer:
        """Return the optimizer."""
        raise NotImplementedError

    def plan(self, number: int, tasks: Sequence[str], absent: Sequence[str] = ()) -> LoadedPlan:
        """Return a loaded step for these tasks; no batch has labels for those of `absent`."""
        batches = tuple(tiny_batch(seed=2 * number + i, absent=absent) for i in range(2))
        return LoadedPlan(batches, (Episode(tuple(tasks), support=0, query=1),))

    def test_a_step_learns(self) -> None:
        """Otherwise a run takes its time and changes nothing."""
        for learner in self._learners():
            optimizer, before = self.make(learner), state_of(learner)
            report = self._step(learner, optimizer, 0)
            assert report.skipped is None, f"an ordinary step is skipped: {report.skipped}"
            assert set(report.losses) == set(self._tasks(learner)), (
                f"losses of {list(report.losses)} are reported"
            )
            moved = set(changes(before, state_of(learner)))
            still = [name for name, _ in learner.named_parameters() if name not in moved]
            assert not still, f"{still} do not learn"

    def test_balancers_hear_of_every_step(self) -> None:
        """Otherwise a balancer that learns from steps never does, or counts some twice."""
        for learner in self._learners():
            (counter,) = (b for b in learner.balancing.balancers if isinstance(b, _Counter))
            optimizer = self.make(learner)
            for number in range(3):
                report = self._step(learner, optimizer, number)
                assert counter.steps == number + 1, (
                    f"after {number + 1} steps after_step was called {counter.steps} times"
                )
                assert learner.context.losses == report.losses, (
                    "context.losses are not the losses of the step"
                )

    def test_parts_hear_of_every_step(self) -> None:
        """Otherwise what a backbone, a head or a cross-task loss learns from steps stays as it is.

        They override `after_step` for that, and hear of no step that is skipped.
        """
        listener = _Listener()
        learner = tiny_learner(cross_task=[listener])
        optimizer = self.make(learner)
        self._step(learner, optimizer, 0)
        assert listener.steps == 1, f"after one step after_step was called {listener.steps} times"
        self._step(learner, optimizer, 1, _poisoned(self.plan(1, self._tasks(learner))))
        assert listener.steps == 1, "after_step was called after a skipped step"

    def test_balancers_decide(self) -> None:
        """Otherwise a run under any balancer is one under the plain sum."""
        states = []
        for number in range(2):
            learner = tiny_learner([_One(number)])
            self._step(learner, self.make(learner), 0)
            shared = {id(p) for p in learner.model.shared_parameters()}
            states.append([p.detach() for p in learner.parameters() if id(p) in shared])
        assert not same(*states), "two balancers that answer differently lead to the same update"

    def test_batches_stay_apart(self) -> None:
        """Otherwise a balancer of several independent batches compares one with itself."""
        states = []
        for other in range(2):
            balancer = _Comparing()
            learner = tiny_learner([balancer])
            optimizer = self.make(learner)
            if not optimizer.separates_batches:
                return
            tasks = self._tasks(learner)
            batches = tuple(tiny_batch(seed=seed) for seed in (20, 21, 22 + other))
            episodes = tuple(Episode(tasks, support=i, query=2, group=i) for i in range(2))
            plan = LoadedPlan(batches, episodes, (Episode(tasks, support=2),))
            report = self._step(learner, optimizer, 0, plan)
            assert report.skipped is None, f"a step of two batches is skipped: {report.skipped}"
            seen = balancer.gramians
            assert seen is not None and tuple(seen.shape) == (2, 2, len(tasks), len(tasks)), (
                "it separates batches, and a balancer of two has no context.gramians"
            )
            assert not close(seen[0, 0], seen[0, 1], 1e-3), "both batches have the same gradients"
            assert balancer.products is not None, "a balancer cannot compare the validation batch"
            states.append(state_of(learner))
        assert same(*states), "it learns from the validation batch"

    def test_a_step_that_is_not_finite_changes_nothing(self) -> None:
        """Otherwise one bad image ruins a run: it stays in batch norms, moments and weights."""
        for learner in self._learners():
            optimizer = self.make(learner)
            for number in range(2):
                self._step(learner, optimizer, number)
            plan = self.plan(2, self._tasks(learner))
            self._check_skipped(learner, optimizer, _poisoned(plan), "an infinite input")
            depth = learner.losses[learner.model.tasks["depth"].key]
            learner.losses[learner.model.tasks["depth"].key] = _Kink()
            self._check_skipped(learner, optimizer, plan, "a gradient that is NaN")
            learner.losses[learner.model.tasks["depth"].key] = depth
            report = self._step(learner, optimizer, 3)
            assert report.skipped is None, f"afterwards it does not go on: {report.skipped}"

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run differs from one that was never interrupted."""
        for learner, restored in zip(self._learners(), self._learners(seed=1), strict=True):
            optimizer = self.make(learner)
            for number in range(3):
                self._step(learner, optimizer, number)
            # Long enough without progress for a schedule that waits for it.
            for _ in range(_PATIENCE):
                optimizer.after_evaluation({t: {"loss": 1.0} for t in self._tasks(learner)})
            state = through_checkpoint(
                {"learner": dict(learner.state_dict()), "optimizer": optimizer.state_dict()}
            )
            resumed = self.make(restored)
            restored.load_state_dict(state["learner"])
            resumed.load_state_dict(state["optimizer"])
            for number in range(3, 6):
                self._step(learner, optimizer, number)
                self._step(restored, resumed, number)
                moved = changes(state_of(learner), state_of(restored))
                assert not moved, f"restored, it takes another step: {moved} differ"

    def test_forgetting_is_starting_anew(self) -> None:
        """Otherwise weights that were drawn anew are pushed on by the moments of the old ones."""
        for learner, fresh in zip(self._learners(), self._learners(), strict=True):
            optimizer = self.make(learner)
            for number in range(3):
                self._step(learner, optimizer, number)
            fresh.load_state_dict(state_of(learner))
            optimizer.reset_state(list(learner.parameters()))
            self._step(learner, optimizer, 3)
            self._step(fresh, self.make(fresh), 3)
            moved = changes(state_of(learner), state_of(fresh))
            assert not moved, f"{moved} still feel what should be forgotten"

    def test_forgetting_a_head_leaves_the_others(self) -> None:
        """Otherwise a head that starts anew makes the whole network stumble."""
        for learner, other in zip(self._learners(), self._learners(), strict=True):
            pairs = [(one, self.make(one)) for one in (learner, other)]
            for number in range(3):
                for one, optimizer in pairs:
                    self._step(one, optimizer, number)
            key = learner.model.tasks["depth"].key
            pairs[0][1].reset_state(list(learner.model.head("depth").parameters()))
            for one, optimizer in pairs:
                self._step(one, optimizer, 3)
            moved = changes(state_of(learner), state_of(other))
            wrong = [name for name in moved if f"heads.{key}." not in name]
            assert not wrong, f"forgetting a head changes the update of {wrong}"

    def test_absent_tasks_stay_as_they_are(self) -> None:
        """Otherwise momentum and decay pull at a head that has nothing to learn from."""
        for absent, asked in ((("depth",), None), ((), ("segmentation", "normals"))):
            for learner in self._learners():
                optimizer = self.make(learner)
                for number in range(3):
                    self._step(learner, optimizer, number)
                before = [p.detach().clone() for p in learner.model.task_parameters("depth")]
                plan = self.plan(3, asked or self._tasks(learner), absent)
                report = self._step(learner, optimizer, 3, plan)
                assert "depth" not in report.losses, "a loss of a task that is absent"
                after = [p.detach() for p in learner.model.task_parameters("depth")]
                assert same(before, after), "parameters of an absent task changed"

    def test_groups_of_components_count(self) -> None:
        """Otherwise a part that asks for its own learning rate learns at the run's."""
        for learner in self._learners() if self.groups_count else ():
            head = learner.model.head("depth")
            before, others = state_of(head), state_of(learner.model.head("normals"))
            vars(head)["parameter_groups"] = lambda head=head: [
                {"params": [*head.parameters()], "lr": 0.0, "weight_decay": 0.0}
            ]
            optimizer = self.make(learner)
            for number in range(2):
                self._step(learner, optimizer, number)
            assert same(before, state_of(head)), (
                "a head whose group has a learning rate of 0 moves: build the optimizer from "
                "learner.parameter_groups()"
            )
            assert changes(others, state_of(learner.model.head("normals"))), (
                "a group's learning rate holds for what is in no group"
            )

    def test_frozen_parts_stay_as_they_are(self) -> None:
        """Otherwise decay moves what nobody meant to change."""
        for learner in self._learners():
            model = learner.model
            model.freeze(["backbone.trunk.0", "heads.depth"])
            kept = [model.get_submodule("backbone.trunk.0"), model.head("depth")]
            before = [state_of(module) for module in kept]
            optimizer = self.make(learner)
            for number in range(2):
                report = self._step(learner, optimizer, number)
                assert report.skipped is None, f"with frozen parts: {report.skipped}"
            assert same(before, [state_of(module) for module in kept]), "frozen tensors changed"

    def test_what_thaws_learns_from_then_on(self) -> None:
        """Otherwise a backbone that is frozen at first never learns, or the run stops."""
        for learner in self._learners():
            model, optimizer = learner.model, self.make(learner)
            trunk = model.get_submodule("backbone.trunk.0")
            frozen, before = model.freeze(["backbone.trunk.0"]), state_of(trunk)
            for number in range(2):
                report = self._step(learner, optimizer, number)
                assert report.skipped is None, f"with frozen parts: {report.skipped}"
            assert same(before, state_of(trunk)), (
                "frozen tensors changed, as they learnt when the optimizer was made"
            )
            model.thaw(frozen)
            report = self._step(learner, optimizer, 2)
            assert report.skipped is None, f"after thawing: {report.skipped}"
            assert changes(before, state_of(trunk)), "what thawed does not learn"

    def test_rates_of_the_backbone_count(self) -> None:
        """Otherwise `model.backbone.lr_scale` is read and does nothing."""
        for learner in self._learners() if self.groups_count else ():
            learner.rates = BackboneRates(lr_scale=1e-30)
            trunk, head = learner.model.backbone, learner.model.head("depth")
            before = [[p.detach().clone() for p in part.parameters()] for part in (trunk, head)]
            optimizer = self.make(learner)
            self._step(learner, optimizer, 0)
            moved = [
                max(float((p.detach() - b).abs().max()) for p, b in zip(now, old, strict=True))
                for now, old in zip((trunk.parameters(), head.parameters()), before, strict=True)
            ]
            assert moved[0] < 1e-20, (
                "a backbone with an lr_scale of almost 0 moves: multiply the rate of a group by "
                "its lr_scale (mtlcore.optimizers.Update does)"
            )
            assert moved[1] > 0, "the backbone's lr_scale holds for heads as well"

    def test_tasks_may_come_late(self) -> None:
        """Otherwise a run whose first batch lacks a task's labels stops at the second."""
        for learner in self._learners():
            optimizer = self.make(learner)
            tasks = self._tasks(learner)
            self._step(learner, optimizer, 0, self.plan(0, tasks, absent=("depth",)))
            before = [p.detach().clone() for p in learner.model.task_parameters("depth")]
            report = self._step(learner, optimizer, 1)
            assert report.skipped is None, f"the task's first step is skipped: {report.skipped}"
            after = [p.detach() for p in learner.model.task_parameters("depth")]
            assert not any(map(same, before, after)), "a task that comes late does not learn"

    def _learners(self, seed: int = 0) -> Iterator[Learner]:
        """One that balances losses, and one that balances gradients."""
        chains: tuple[list[Balancer], ...] = ([Uncertainty(), _Counter()], [_Counter(), _Mean()])
        for chain in chains:
            yield tiny_learner(chain, seed=seed)

    @staticmethod
    def _tasks(learner: Learner) -> tuple[str, ...]:
        return tuple(learner.model.tasks)

    def _step(
        self, learner: Learner, optimizer: Optimizer, number: int, plan: LoadedPlan | None = None
    ) -> StepReport:
        context = learner.context
        # One point of the schedule throughout: the rate is no state that a skipped step may keep.
        context.step, context.epoch, context.progress, context.losses = number, 0, 0.25, {}
        return optimizer.step(learner, plan or self.plan(number, self._tasks(learner)))

    def _check_skipped(
        self, learner: Learner, optimizer: Optimizer, plan: LoadedPlan, what: str
    ) -> None:
        def everything() -> dict[str, Any]:
            return {
                "learner": state_of(learner),
                "optimizer": copy.deepcopy(optimizer.state_dict()),
            }

        before = everything()
        report = self._step(learner, optimizer, 2, plan)
        assert report.skipped, f"{what}: the step is not reported as skipped"
        moved = changes(before, everything())
        assert not moved, f"{what}: the skipped step changed {moved}"


def _poisoned(plan: LoadedPlan) -> LoadedPlan:
    batches = []
    for batch in plan.batches:
        inputs = batch.inputs.clone()
        inputs[0, 0, 0, 0] = float("inf")
        batches.append(attrs.evolve(batch, inputs=inputs))
    return attrs.evolve(plan, batches=tuple(batches))
