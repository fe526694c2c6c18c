"""The contract of balancers of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, Balancing, LossBalancer
from mtlcore.data import Batch
from mtlcore.metrics import MetricValues
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    changes,
    check_groups,
    global_stream_untouched,
    lacking,
    leaves,
    same,
    some_metrics,
    state_of,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_SIZE, TINY_TASKS, any_names, tiny_batch

_EPOCH = 2  # steps


@attrs.frozen
class _Turn:
    """One step of a loss balancer: values by task, and gradients at what the losses come from."""

    values: dict[str, float]
    gradients: dict[str, Tensor]


class LossBalancerContract:
    """Subclass it, write `make`, and pytest checks the balancer of losses.

    Attributes:
        tasks: of the run.
        keeps_absent_state: what is kept under an absent task's name does not change.
        reaches_every_loss: every loss has a gradient that is not zero.
        names_tasks: its settings name tasks, so that it refuses to be prepared for others.
    """

    tasks: tuple[Task, ...] = TINY_TASKS
    keeps_absent_state: bool = True
    reaches_every_loss: bool = True
    names_tasks: bool = False

    def make(self) -> LossBalancer:
        """Return the balancer."""
        raise NotImplementedError

    def batch(self) -> Batch:
        """Return the batch for `prepare` and, with `needs_maps`, for each step."""
        return tiny_batch(tasks=self.tasks)

    def metrics(self, number: int) -> MetricValues:
        """Return what the evaluation of this number finds, for a balancer that reads metrics.

        Args:
            number: from 0.
        """
        return some_metrics(self._names(), number)

    def test_every_present_task_keeps_its_loss(self) -> None:
        """Otherwise a task is not learnt, or one is learnt that has no labels."""
        balancer = self._new()
        for number, present in enumerate((None, self._names()[1:], self._names()[:1], None)):
            values = self._turn(balancer, number, present=present).values
            assert list(values) == (present or self._names()), (
                f"losses of {present or self._names()} in, of {list(values)} out"
            )

    def test_losses_stay_as_they_were(self) -> None:
        """Otherwise the record shows other losses than the ones that were measured."""
        balancer = self._new()
        for number in range(2 * _EPOCH + 1):
            context = self._context(number)
            losses, _ = self._losses(context, 1.0)
            given, before = dict(losses), {task: float(x.detach()) for task, x in losses.items()}
            balancer.transform(losses, context)
            assert losses.keys() == given.keys(), "tasks were added to or taken from its input"
            for task, loss in losses.items():
                assert loss is given[task], f"the loss of {task} was replaced in its input"
                assert same(float(loss.detach()), before[task]), f"the loss of {task} was edited"
            self._turn(balancer, number)

    def test_absent_tasks_leave_no_trace(self) -> None:
        """Otherwise a task's weight moves in steps that know nothing of it."""
        balancer = self._new()
        for number in range(2 * _EPOCH + 1):
            self._turn(balancer, number)
        absent, *others = self.tasks
        before = state_of(balancer)
        # Within the epoch: closing one may well look at all tasks.
        self._turn(balancer, 2 * _EPOCH + 1, present=[task.name for task in others])
        if self.keeps_absent_state:
            old, new = dict(leaves(before)), dict(leaves(state_of(balancer)))
            own = {path for path in old if {absent.key, absent.name} & set(path)}
            moved = [".".join(path) for path in own if not same(old[path], new.get(path))]
            assert not moved, f"{moved} of {absent.name} changed in a step without it"

    def test_state_moves_in_after_step_only(self) -> None:
        """Otherwise a step that is skipped because it is not finite poisons the balancer."""
        balancer = self._new()
        for number in range(3 * _EPOCH):
            before = state_of(balancer)
            self._turn(balancer, number, take=False)
            moved = changes(before, state_of(balancer))
            assert not moved, f"transform changed {moved}; that belongs into after_step"
            self._turn(balancer, number)

    def test_batches_are_as_announced(self) -> None:
        """Otherwise a step loads batches that nobody looks at."""
        Balancing([self._new()])  # says that only balancers of Gramians may ask for more than one

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new())

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run differs from one that was never interrupted."""
        balancer, generator = self._new(), torch.Generator().manual_seed(1)
        for number in range(2 * _EPOCH + 1):
            self._turn(balancer, number, generator=generator)
        balancer.after_evaluation(self.metrics(0))
        state = through_checkpoint({"balancer": dict(balancer.state_dict())})["balancer"]
        restored, copy = self._new(seed=5), torch.Generator()
        restored.load_state_dict(state)
        copy.set_state(generator.get_state())
        for number in range(2 * _EPOCH + 1, 4 * _EPOCH):
            one = self._turn(balancer, number, generator=generator)
            other = self._turn(restored, number, generator=copy)
            assert one.values == other.values, (
                f"{number - 2 * _EPOCH} steps after restoring, {other.values} instead of "
                f"{one.values}: something it knows is not part of its state"
            )
            assert same(one.gradients, other.gradients), "restored, it gives other gradients"
            for each in (balancer, restored):
                each.after_evaluation(self.metrics(number))
            assert same(state_of(balancer), state_of(restored)), "restored, its state differs"

    def test_randomness_comes_from_the_context(self) -> None:
        """Otherwise processes disagree, and a resumed run differs."""
        runs = []
        for seed in (1, 2):
            balancer = self._new()
            generator = torch.Generator().manual_seed(3)
            torch.manual_seed(seed)
            with global_stream_untouched("the balancer"):
                runs.append(
                    [self._turn(balancer, n, generator=generator) for n in range(3 * _EPOCH)]
                )
        for one, other in zip(*runs, strict=True):
            assert same([one.values, one.gradients], [other.values, other.gradients]), (
                "the same generator gives another result"
            )

    def test_finite_for_tiny_and_large_losses(self) -> None:
        """Otherwise a task that is solved, or one in millimetres, stops the run."""
        scales = [(s,) * len(self.tasks) for s in (1e-8, 1e6)]
        scales.append(tuple(1e-8 if i else 1e6 for i in range(len(self.tasks))))
        for scale in scales:
            balancer = self._new()
            for number in range(3 * _EPOCH):
                turn = self._turn(balancer, number, scale=scale)
                assert all(map(math.isfinite, turn.values.values())), (
                    f"losses of about {scale} become {turn.values}"
                )
                assert all(bool(g.isfinite().all()) for g in turn.gradients.values()), (
                    f"a gradient is not finite for losses of about {scale}"
                )
                weights = dict(leaves(balancer.current_weights()))
                assert all(map(math.isfinite, weights.values())), f"weights {weights}"

    def test_evaluations_may_lack_values(self) -> None:
        """Otherwise a run stops where the validation split has no label of a task."""
        balancer = self._new()
        for number, metrics in enumerate(lacking(self.metrics(0))):
            balancer.after_evaluation(metrics)
            values = self._turn(balancer, number).values
            assert all(map(math.isfinite, values.values())), (
                f"after an evaluation that found {metrics}, the losses become {values}"
            )

    def test_gradients_reach_every_loss(self) -> None:
        """Otherwise a task is in the sum but nothing learns it."""
        balancer = self._new()
        for number in range(3 * _EPOCH):
            gradients = self._turn(balancer, number).gradients
            lost = [task for task in self._names() if not bool(gradients[task].any())]
            assert not (self.reaches_every_loss and lost), f"no gradient reaches {lost}"

    def test_tasks_may_have_any_name(self) -> None:
        """Otherwise a task called "type" stops the run: torch's containers refuse such names."""
        if self.names_tasks:
            return
        tasks = any_names(self.tasks)
        self.make().prepare(tasks, [tiny_batch(tasks=tasks)])

    def test_preparing_again_keeps_what_was_learnt(self) -> None:
        """Otherwise a task that joins later makes the others start anew."""
        balancer = self._new()
        for number in range(2 * _EPOCH + 1):
            self._turn(balancer, number)
        before = dict(leaves(state_of(balancer)))
        newcomer = attrs.evolve(self.tasks[0], name="newcomer")
        balancer.prepare(self.tasks, [self.batch()])
        balancer.prepare([*self.tasks, newcomer], [tiny_batch(tasks=[*self.tasks, newcomer])])
        after = dict(leaves(state_of(balancer)))
        own = [p for p in before if {x for t in self.tasks for x in (t.key, t.name)} & set(p)]
        moved = [".".join(p) for p in own if not same(before[p], after.get(p))]
        assert not moved, f"{moved} changed in prepare"

    def _names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def _new(self, seed: int = 0) -> LossBalancer:
        torch.manual_seed(seed)
        balancer = self.make()
        balancer.prepare(self.tasks, [self.batch()])
        return balancer

    def _context(
        self,
        number: int,
        present: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> BalancerContext:
        return BalancerContext(
            tasks=tuple(self._names()),
            generator=generator or torch.Generator().manual_seed(number),
            step=number,
            epoch=number // _EPOCH,
            progress=number / 100,
            present=tuple(present or self._names()),
        )

    def _losses(
        self, context: BalancerContext, scale: float | Sequence[float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses made of maps, and what the maps are made of; both depend on the step alone."""
        batch = self.batch()
        generator = torch.Generator().manual_seed(context.step)
        factors = scale if isinstance(scale, Sequence) else (scale,) * len(self.tasks)
        losses, roots, maps = {}, {}, {}
        for task, factor in zip(self.tasks, factors, strict=True):
            shape = (len(batch), *task.valid_shape(TINY_SIZE))
            root = (torch.rand(shape, generator=generator) + 0.5).requires_grad_()
            if task.name not in context.present:
                continue
            valid = batch.valid[task.name]
            roots[task.name], maps[task.name] = root, factor * root.square()
            losses[task.name] = (maps[task.name] * valid).sum() / valid.sum()
        context.maps, context.batch = maps, batch
        context.reevaluate = lambda: {t: 0.9 * float(x.detach()) for t, x in losses.items()}
        return losses, roots

    def _turn(
        self,
        balancer: LossBalancer,
        number: int,
        *,
        present: Sequence[str] | None = None,
        scale: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        take: bool = True,
    ) -> _Turn:
        """Do what the core does in a step; one that is skipped ends after the backward pass."""
        context = self._context(number, present, generator)
        losses, roots = self._losses(context, scale)
        balanced = balancer.transform(dict(losses), context)
        parameters = list(balancer.parameters())
        total = torch.stack([*balanced.values()]).sum()
        gradients = torch.autograd.grad(total, [*roots.values(), *parameters], allow_unused=True)
        if take:
            with torch.no_grad():
                for p, g in zip(parameters, gradients[len(roots) :], strict=True):
                    if g is not None:
                        p.sub_(1e-3 * g.clamp(-1, 1))
            context.losses = {task: float(x.detach()) for task, x in losses.items()}
            balancer.after_step(context)
        return _Turn(
            {task: float(x.detach()) for task, x in balanced.items()},
            {
                task: torch.zeros_like(root) if g is None else g
                for (task, root), g in zip(roots.items(), gradients, strict=False)
            },
        )
