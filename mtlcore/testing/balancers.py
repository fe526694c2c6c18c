"""What holds for every balancer: of losses, of Gramians, of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mtlcore.balancing import (
    Balancer,
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
)
from mtlcore.data import Batch
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    changes,
    close,
    global_stream_untouched,
    leaves,
    same,
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
        """The balancer."""
        raise NotImplementedError

    def batch(self) -> Batch:
        """What it may look at in `prepare` and, with `needs_maps`, in a step."""
        return tiny_batch(tasks=self.tasks)

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

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run differs from one that was never interrupted."""
        balancer, generator = self._new(), torch.Generator().manual_seed(1)
        for number in range(2 * _EPOCH + 1):
            self._turn(balancer, number, generator=generator)
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
        """What the core does in a step; one that is not taken ends after the backward pass."""
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


class _GradientsContract:
    """What balancers of Gramians and of gradients have in common.

    Attributes:
        permutation_equivariant: the direction does not depend on the order of the tasks.
        scale_equivariant: one factor on all gradients leaves the direction's direction alone.
        non_conflicting_when_agreeing: where tasks agree, no task's loss rises along the direction.
        scales: of gradients, at which its answers are finite.
    """

    permutation_equivariant: bool = True
    scale_equivariant: bool = True
    non_conflicting_when_agreeing: bool = True
    scales: tuple[float, ...] = (1e-12, 1e-6, 1.0, 1e6, 1e12)

    def make(self) -> Any:
        """The balancer."""
        raise NotImplementedError

    def _answer(self, balancer: Any, rows: Tensor, context: BalancerContext | None) -> Tensor:
        raise NotImplementedError

    def _direction(self, rows: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """The merged gradient of a new balancer, float64."""
        raise NotImplementedError

    def test_finite_at_every_scale(self) -> None:
        """Otherwise a run stops where losses are small, or balances by rounding errors."""
        rows = self._rows(3)
        spread = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)[:, None]
        for scale in self.scales:
            self._check_finite(scale * rows, f"gradients of size {scale}")
        self._check_finite(spread * rows, "gradients of sizes 1e-6, 1 and 1e6")

    def test_finite_for_degenerate_gradients(self) -> None:
        """Otherwise two tasks that agree, or one that is solved, stop the run."""
        first, second, third = self._rows(3)
        zero = torch.zeros_like(first)
        cases = {
            "a zero row": [first, zero, third],
            "zero rows only": [zero, zero, zero],
            "twice the same row": [first, first, third],
            "opposite rows": [first, -first, third],
            "nothing but opposite rows": [first, -first],
            "rows that are multiples of one": [first, 2 * first, -0.5 * first],
            "almost the same row": [first, first * (1 + 1e-9), second],
        }
        for what, rows in cases.items():
            self._check_finite(torch.stack(rows), what)

    def test_any_number_of_tasks(self) -> None:
        """Otherwise a run with one task, or with forty, fails at its first step."""
        for count in (1, 2, 7, 40):
            self._check_finite(self._rows(count), f"{count} tasks")

    def test_tasks_come_and_go(self) -> None:
        """Otherwise a step in which a task has no labels stops the run."""
        balancer, rows = self._new(4), self._rows(4)
        for number, present in enumerate(([0, 1, 2, 3], [1, 3], [2], [3, 2, 1, 0])):
            names = [f"task{i}" for i in present]
            answer = self._taken(balancer, rows[present], self._context(number, names, 4))
            assert bool(answer.isfinite().all()), f"not finite when {names} are present"

    def test_tasks_may_have_any_name(self) -> None:
        """Otherwise a task called "type" stops the run: torch's containers refuse such names."""
        self.make().prepare(any_names(TINY_TASKS), None)

    def test_input_stays_as_it_was(self) -> None:
        """Otherwise the update is made of other gradients than the recorded ones."""
        rows = self._rows(3)
        given = self._input(rows)
        before = given.clone()
        self._ask(self._new(3), given, self._context(0, None, 3))
        assert same(given, before), "the input was edited in place"

    def test_order_of_tasks_does_not_matter(self) -> None:
        """Otherwise the order of `tasks` in the configuration changes what is learnt."""
        if not self.permutation_equivariant:
            return
        order = [2, 0, 3, 1]
        rows = self._rows(4)
        one = self._direction(rows)
        other = self._direction(rows[order], [f"task{i}" for i in order])
        assert close(one, other, 1e-6), "another order of the tasks, another direction"

    def test_scale_of_all_gradients_does_not_matter(self) -> None:
        """Otherwise a loss scale of mixed precision changes where the update goes."""
        if not self.scale_equivariant:
            return
        rows = self._rows(3)
        one, other = (_unit(self._direction(scale * rows)) for scale in (1.0, 1e3))
        assert close(one, other, 1e-6), "one factor on all gradients turns the direction"

    def test_agreeing_tasks_are_not_turned_around(self) -> None:
        """Otherwise a task's loss rises although no other task asks for it."""
        if not self.non_conflicting_when_agreeing:
            return
        sizes = torch.tensor([1e-2, 1.0, 30.0], dtype=torch.float64)[:, None]
        for seed in range(5):
            # Coordinate by coordinate of one sign: every reading of "agreeing" is met.
            rows = self._rows(3, seed).abs() * self._rows(1, seed + 10).sign()
            for scaled in (rows, sizes * rows):
                along = torch.nn.functional.normalize(scaled, dim=1) @ _unit(
                    self._direction(scaled)
                )
                assert bool((along >= -1e-6).all()), (
                    f"all tasks agree, but the direction has cosines {along.tolist()} with them"
                )

    def test_state_moves_in_after_step_only(self) -> None:
        """Otherwise a step that is skipped because it is not finite poisons the balancer."""
        balancer = self._new(3)
        for number in range(4):
            context = self._context(number, None, 3)
            before = state_of(balancer)
            self._answer(balancer, self._rows(3, number), context)
            moved = changes(before, state_of(balancer))
            assert not moved, f"{moved} changed before after_step"
            balancer.after_step(context)

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run differs from one that was never interrupted."""
        balancer, generator = self._new(3), torch.Generator().manual_seed(1)
        for number in range(3):
            self._taken(balancer, self._rows(3, number), self._context(number, None, 3, generator))
        state = through_checkpoint({"balancer": dict(balancer.state_dict())})["balancer"]
        restored, copy = self._new(3), torch.Generator()
        restored.load_state_dict(state)
        copy.set_state(generator.get_state())
        for number in range(3, 6):
            rows = self._rows(3, number)
            one = self._taken(balancer, rows, self._context(number, None, 3, generator))
            other = self._taken(restored, rows, self._context(number, None, 3, copy))
            assert same(one, other), "restored, it answers differently: its state is not whole"
            assert same(state_of(balancer), state_of(restored)), "restored, its state differs"

    def test_randomness_comes_from_the_generator(self) -> None:
        """Otherwise processes disagree, and a resumed run differs."""
        rows = self._rows(4)

        def with_context() -> Tensor:
            generator = torch.Generator().manual_seed(3)
            return self._answer(self._new(4), rows, self._context(0, None, 4, generator))

        def without_context() -> Tensor:
            balancer = self._new(4)
            balancer.generator = torch.Generator().manual_seed(3)
            return self._answer(balancer, rows, None)

        for what, ask in (("context's", with_context), ("balancer's", without_context)):
            one, other = self._watched(ask, 1), self._watched(ask, 2)
            assert same(one, other), f"the same state of the {what} generator, another answer"

    def _new(self, count: int) -> Any:
        balancer = self.make()
        assert isinstance(balancer, Balancer)
        balancer.prepare(
            [Task(name=f"task{i}", kind="depth", channels=1) for i in range(count)], None
        )
        return balancer

    def _rows(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 64, generator=generator, dtype=torch.float64)

    def _context(
        self,
        number: int,
        names: Sequence[str] | None,
        count: int,
        generator: torch.Generator | None = None,
    ) -> BalancerContext:
        tasks = tuple(f"task{i}" for i in range(count))
        present = tuple(names or tasks)
        return BalancerContext(
            tasks=tasks,
            generator=generator or torch.Generator().manual_seed(number),
            step=number,
            epoch=number // _EPOCH,
            progress=number / 100,
            present=present,
            losses={task: 1.0 / (2 + tasks.index(task) + number) for task in present},
            reevaluate=lambda: dict.fromkeys(present, 0.9),
        )

    def _input(self, rows: Tensor) -> Tensor:
        """What the balancer reads where the gradients are these."""
        raise NotImplementedError

    def _ask(self, balancer: Any, given: Tensor, context: BalancerContext | None) -> Tensor:
        """Its answer to what it reads."""
        raise NotImplementedError

    def _check_finite(self, rows: Tensor, what: str) -> None:
        raise NotImplementedError

    def _taken(self, balancer: Any, rows: Tensor, context: BalancerContext) -> Tensor:
        answer = self._answer(balancer, rows, context)
        balancer.after_step(context)
        return answer

    @staticmethod
    def _watched(ask: Callable[[], Tensor], seed: int) -> Tensor:
        torch.manual_seed(seed)
        with global_stream_untouched("the balancer"):
            return ask()


class GramianBalancerContract(_GradientsContract):
    """Subclass it, write `make`, and pytest checks the balancer of Gramians.

    Attributes:
        per_task_state: it must be prepared for its tasks before it is asked.
    """

    per_task_state: bool = False

    def make(self) -> GramianBalancer:
        """The balancer."""
        raise NotImplementedError

    def test_needs_no_preparation(self) -> None:
        """Otherwise it cannot be used outside of a run, on any matrix."""
        if self.per_task_state:
            return
        balancer = self.make()
        for count in (3, 1, 5):
            weights = balancer.weights(self._input(self._rows(count)))
            assert weights.shape[-1] == count, f"{count} tasks, weights {tuple(weights.shape)}"

    def test_weights_move_with_their_tasks(self) -> None:
        """Otherwise a weight lands on another task than the one it was computed for."""
        if not self.permutation_equivariant:
            return
        order = [2, 0, 3, 1]
        rows = self._rows(4)
        weights = self._answer(self._new(4), rows, self._context(0, None, 4))
        names = [f"task{i}" for i in order]
        moved = self._answer(self._new(4), rows[order], self._context(0, names, 4))
        assert close(weights[..., order], moved, 1e-6), "another order of tasks, other weights"

    def _input(self, rows: Tensor) -> Tensor:
        return rows @ rows.T

    def _ask(
        self, balancer: GramianBalancer, given: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return balancer.weights(given, context)

    def _answer(
        self, balancer: GramianBalancer, rows: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return balancer.weights(self._input(rows), context)

    def _direction(self, rows: Tensor, names: Sequence[str] | None = None) -> Tensor:
        count = len(rows)
        weights = self._answer(self._new(count), rows, self._context(0, names, count))
        return (weights if weights.dim() == 1 else weights[0]) @ rows

    def _check_finite(self, rows: Tensor, what: str) -> None:
        count = len(rows)
        balancer: GramianBalancer = self._new(count)
        weights = self._answer(balancer, rows, self._context(0, None, count))
        assert tuple(weights.shape) in ((count,), (2, count)), (
            f"{what}: weights of shape {tuple(weights.shape)} for {count} tasks"
        )
        assert weights.dtype == torch.float64, f"{what}: weights are {weights.dtype}"
        assert bool(weights.isfinite().all()), f"{what}: weights {weights.tolist()}"
        assert balancer.status in ("converged", "degenerate"), f"{what}: {balancer.status}"


class GradientBalancerContract(_GradientsContract):
    """Subclass it, write `make`, and pytest checks the balancer of gradients."""

    def make(self) -> GradientBalancer:
        """The balancer."""
        raise NotImplementedError

    def test_elementwise_means_elementwise(self) -> None:
        """Otherwise the update changes with how the network is cut into parameters."""
        if not self._new(3).elementwise:
            return
        rows = self._rows(3)
        generator = torch.Generator().manual_seed(0)
        untouched = generator.get_state()
        whole = self._answer(self._new(3), rows, self._context(0, None, 3, generator))
        other = rows.clone()
        other[:, ::3] = 5 * other[:, ::3].flip(0) - 1
        there = self._answer(self._new(3), other, self._context(0, None, 3))
        kept = torch.ones(rows.shape[1], dtype=torch.bool)
        kept[::3] = False
        assert close(whole[kept], there[kept], 1e-12), (
            "other values in some coordinates change the direction in the rest"
        )
        if torch.equal(untouched, generator.get_state()):
            balancer, context = self._new(3), self._context(0, None, 3)
            parts = [
                self._answer(balancer, part, context) for part in torch.split(rows, [1, 40, 23], 1)
            ]
            assert close(whole, torch.cat(parts), 1e-12), "asked in pieces, it answers differently"

    def test_single_precision(self) -> None:
        """Otherwise it fails on the gradients of a real run, or doubles their memory."""
        rows = self._rows(3).float()
        direction = self._answer(self._new(3), rows, self._context(0, None, 3))
        assert direction.dtype == torch.float32, f"float32 in, {direction.dtype} out"

    def _input(self, rows: Tensor) -> Tensor:
        return rows.clone()

    def _ask(
        self, balancer: GradientBalancer, given: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return balancer.combine(given, context)

    def _answer(
        self, balancer: GradientBalancer, rows: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return balancer.combine(self._input(rows), context)

    def _direction(self, rows: Tensor, names: Sequence[str] | None = None) -> Tensor:
        count = len(rows)
        return self._answer(self._new(count), rows, self._context(0, names, count))

    def _check_finite(self, rows: Tensor, what: str) -> None:
        count = len(rows)
        for given in (rows, rows.float()):
            direction = self._answer(self._new(count), given, self._context(0, None, count))
            assert direction.shape == rows.shape[1:], (
                f"{what}: rows {tuple(rows.shape)} in, {tuple(direction.shape)} out"
            )
            assert bool(direction.isfinite().all()), f"{what}: not finite in {given.dtype}"


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm() if bool(vector.any()) else vector
