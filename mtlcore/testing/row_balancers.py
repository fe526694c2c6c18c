"""What holds for balancers of Gramians and of gradients alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.balancing import Balancer, BalancerContext, Balancing
from mtlcore.metrics import MetricValues
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    changes,
    check_groups,
    close,
    global_stream_untouched,
    lacking,
    same,
    some_metrics,
    state_of,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_TASKS, any_names


class RowBalancerContract:
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
        """Return the balancer."""
        raise NotImplementedError

    def metrics(self, number: int) -> MetricValues:
        """Return what the evaluation of this number finds, for a balancer that reads metrics.

        Args:
            number: from 0.
        """
        return some_metrics((f"task{i}" for i in range(3)), number)

    def _answer(self, balancer: Any, rows: Tensor, context: BalancerContext | None) -> Tensor:
        raise NotImplementedError

    def _direction(self, rows: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Return the merged gradient of a new balancer, float64."""
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

    def test_a_skipped_step_leaves_no_trace(self) -> None:
        """Otherwise what a step that is not finite proposed is kept by the next one."""
        skipping, straight = self._new(3), self._new(3)
        answers = []
        for balancer in (skipping, straight):
            for number in range(3):
                context = self._context(number, None, 3)
                if balancer is skipping:
                    self._answer(balancer, self._rows(3, 10 + number), context)
                    context = self._context(number, None, 3)
                answers.append(self._taken(balancer, self._rows(3, number), context))
        for one, other in zip(answers[:3], answers[3:], strict=True):
            assert same(one, other), "a step that was skipped changes the next one"

    def test_steps_between_updates(self) -> None:
        """Otherwise a run with `balancer.update_every` does not resume where it was."""
        whole, states = self._new(3), []
        answers = []
        for number in range(6):
            states.append(through_checkpoint({"balancer": dict(whole.state_dict())})["balancer"])
            answers.append(self._every_other(whole, number))
        for start in (1, 2, 3):
            resumed = self._new(3)
            resumed.load_state_dict(states[start])
            for number in range(start, 6):
                answer = self._every_other(resumed, number)
                assert answer is None or same(answer, answers[number]), (
                    f"restored before step {number}, asked every other step, it answers otherwise"
                )

    def _every_other(self, balancer: Any, number: int) -> Tensor | None:
        """Take a step of a run that asks the balancer every other step only."""
        context = self._context(number, None, 3)
        answer = None
        if number % 2 == 0:
            answer = self._answer(balancer, self._rows(3, number), context)
            context.gramian = self._gramian(self._rows(3, number))
        balancer.after_step(context)
        return answer

    def _gramian(self, rows: Tensor) -> Tensor | None:
        """Return what `BalancerContext.gramian` is in a step; None without a Gramian."""
        return None

    def test_batches_are_as_announced(self) -> None:
        """Otherwise a step loads batches that nobody looks at, or lacks what is looked at."""
        Balancing([self._new(3)])  # says what is wrong with the announcement

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new(len(TINY_TASKS)))

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run differs from one that was never interrupted."""
        balancer, generator = self._new(3), torch.Generator().manual_seed(1)
        for number in range(3):
            self._taken(balancer, self._rows(3, number), self._context(number, None, 3, generator))
        balancer.after_evaluation(self.metrics(0))
        state = through_checkpoint({"balancer": dict(balancer.state_dict())})["balancer"]
        restored, copy = self._new(3), torch.Generator()
        restored.load_state_dict(state)
        copy.set_state(generator.get_state())
        for number in range(3, 6):
            rows = self._rows(3, number)
            one = self._taken(balancer, rows, self._context(number, None, 3, generator))
            other = self._taken(restored, rows, self._context(number, None, 3, copy))
            assert same(one, other), "restored, it answers differently: its state is not whole"
            for each in (balancer, restored):
                each.after_evaluation(self.metrics(number))
            assert same(state_of(balancer), state_of(restored)), "restored, its state differs"

    def test_evaluations_may_lack_values(self) -> None:
        """Otherwise a run stops where the validation split has no label of a task."""
        balancer = self._new(3)
        for number, metrics in enumerate(lacking(self.metrics(0))):
            balancer.after_evaluation(metrics)
            answer = self._taken(balancer, self._rows(3), self._context(number, None, 3))
            assert bool(answer.isfinite().all()), (
                f"after an evaluation that found {metrics}, it answers {answer.tolist()}"
            )

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

        ways = [("context's", with_context), ("balancer's", without_context)]
        for what, ask in ways[:1] if self._sees_batches(self.make()) else ways:
            one, other = self._watched(ask, 1), self._watched(ask, 2)
            assert same(one, other), f"the same state of the {what} generator, another answer"

    @staticmethod
    def _sees_batches(balancer: Balancer) -> bool:
        """Return whether it compares batches, which only a context holds."""
        return balancer.batches > 1 or balancer.validation is not None

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
            epoch=number // 2,
            progress=number / 100,
            present=present,
            learning_rate=0.1,
            losses={task: 1.0 / (2 + tasks.index(task) + number) for task in present},
            reevaluate=lambda: dict.fromkeys(present, 0.9),
        )

    def _input(self, rows: Tensor) -> Tensor:
        """Return what the balancer reads where the gradients are these."""
        raise NotImplementedError

    def _ask(self, balancer: Any, given: Tensor, context: BalancerContext | None) -> Tensor:
        """Its answer to what it reads."""
        raise NotImplementedError

    def _check_finite(self, rows: Tensor, what: str) -> None:
        raise NotImplementedError

    def _taken(self, balancer: Any, rows: Tensor, context: BalancerContext) -> Tensor:
        answer = self._answer(balancer, rows, context)
        context.gramian = self._gramian(rows)
        balancer.after_step(context)
        return answer

    @staticmethod
    def _watched(ask: Callable[[], Tensor], seed: int) -> Tensor:
        torch.manual_seed(seed)
        with global_stream_untouched("the balancer"):
            return ask()


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm() if bool(vector.any()) else vector
