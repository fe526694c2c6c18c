"""The contracts of balancers of Gramians and of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GradientBalancer, GramianBalancer, Place
from mtlcore.testing.base import close, same
from mtlcore.testing.row_balancers import RowBalancerContract


class GramianBalancerContract(RowBalancerContract):
    """Subclass it, write `make`, and pytest checks the balancer of Gramians.

    Attributes:
        per_task_state: it must be prepared for its tasks before it is asked.
    """

    per_task_state: bool = False

    def make(self) -> GramianBalancer:
        """Return the balancer."""
        raise NotImplementedError

    def test_needs_no_preparation(self) -> None:
        """Otherwise it cannot be used outside of a run, on any matrix."""
        if self.per_task_state:
            return
        balancer = self.make()
        if self._sees_batches(balancer):
            return
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

    def test_rounding_of_products_matters_little(self) -> None:
        """Otherwise it works on exact matrices, and on none of a training in float32."""
        given = self._input(self._rows(3))
        noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=given.dtype)
        exact, rounded = (
            self._ask(self._new(3), matrix, self._context(0, None, 3))
            for matrix in (given, given * (1 + 2.0**-20 * noise))
        )
        assert close(exact, rounded, 1e-4), (
            "the Gramian of a training, whose halves differ by rounding, has other weights: "
            f"{rounded.tolist()} instead of {exact.tolist()}"
        )

    def test_batches_are_as_announced(self) -> None:
        """Otherwise a step loads batches that nobody looks at, or lacks what is looked at."""
        super().test_batches_are_as_announced()
        balancer = self._new(3)
        name, batches = type(balancer).__name__, balancer.batches
        one, other = (self._over_batches(max(batches, 2), noise) for noise in (0.0, 2.0))
        if batches > 1:
            assert not same(one[0], other[0]), (
                f"{name}.batches is {batches}, but other gradients in each batch, of the same "
                "mean, change nothing: it never reads context.gramians"
            )
        else:
            assert same(one[0], other[0]), (
                f"{name} reads context.gramians, which is None in a run: announce how many "
                "independent batches it needs (batches = 2)"
            )
        if balancer.validation is not None:
            assert one[1] > 0, (
                f"{name}.validation is {balancer.validation!r}, but it never calls "
                "context.validation_products"
            )
        else:
            assert one[1] == 0, (
                f"{name} calls context.validation_products, which is None in a run: announce "
                'where its validation batch comes from (validation = "val")'
            )

    def _over_batches(self, batches: int, noise: float) -> tuple[list[Tensor], int]:
        """Return answers in three steps with batches that differ, and calls for validation."""
        balancer, answers, calls = self._new(3), [], 0

        def products(weights: Tensor | None = None, rate: float = 0.0) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            return gramian.clone(), gramian.diagonal().clone()

        for number in range(3):
            rows, context = self._rows(3, number), self._context(number, None, 3)
            gramian = self._gramian(rows)
            around = torch.stack([self._rows(3, 10 + number + i) for i in range(batches)])
            each = rows + noise * (around - around.mean(0))
            context.gramians = torch.einsum("akp,blp->abkl", each, each)
            context.labelled_batches = torch.full((each.shape[1],), float(len(each))).double()
            context.validation_products = products
            answers.append(balancer.weights(gramian, context=context))
            context.gramian, context.validation_products = gramian, None
            balancer.after_step(context)
        return answers, calls

    def _input(self, rows: Tensor) -> Tensor:
        return rows @ rows.T

    def _gramian(self, rows: Tensor) -> Tensor:
        return rows @ rows.T

    def _ask(
        self, balancer: GramianBalancer, given: Tensor, context: BalancerContext | None
    ) -> Tensor:
        """Ask as a run does where all batches of the step are the same."""
        if context is None or not self._sees_batches(balancer):
            return balancer.weights(given, context=context)
        gramian = given.clone()
        if balancer.batches > 1:
            context.gramians = gramian.repeat(balancer.batches, balancer.batches, 1, 1)
            context.labelled_batches = torch.full((len(gramian),), float(balancer.batches)).double()
        if balancer.validation is not None:
            context.validation_products = lambda weights=None, rate=0.0: (
                gramian.clone(),
                torch.zeros(len(gramian), dtype=torch.float64),
            )
        answer = balancer.weights(given, context=context)
        context.validation_products = None
        return answer

    def _answer(
        self, balancer: GramianBalancer, rows: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return self._ask(balancer, self._input(rows), context)

    def _direction(self, rows: Tensor, names: Sequence[str] | None = None) -> Tensor:
        count = len(rows)
        weights = self._answer(self._new(count), rows, self._context(0, names, count))
        # Weights of several batches, which hold the same here, add up.
        whole = weights.sum(0) if weights.dim() == 3 else weights
        return (whole if whole.dim() == 1 else whole[0]) @ rows

    def _check_finite(self, rows: Tensor, what: str) -> None:
        count = len(rows)
        balancer: GramianBalancer = self._new(count)
        weights = self._answer(balancer, rows, self._context(0, None, count))
        of_batches = (balancer.batches, 2, count) if balancer.batches > 1 else (2, count)
        assert tuple(weights.shape) in ((count,), (2, count), of_batches), (
            f"{what}: weights of shape {tuple(weights.shape)} for {count} tasks"
        )
        assert weights.dtype == torch.float64, f"{what}: weights are {weights.dtype}"
        assert bool(weights.isfinite().all()), f"{what}: weights {weights.tolist()}"
        assert balancer.status in ("converged", "degenerate"), f"{what}: {balancer.status}"


class GradientBalancerContract(RowBalancerContract):
    """Subclass it, write `make`, and pytest checks the balancer of gradients."""

    def make(self) -> GradientBalancer:
        """Return the balancer."""
        raise NotImplementedError

    def test_element_means_element(self) -> None:
        """Otherwise the update changes with how the network is cut into parameters."""
        if self._new(3).granularity != "element":
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

    def test_columns_have_no_identity(self) -> None:
        """Otherwise its state is of other parameters where phases or labels change what is reached.

        A balancer that keeps a value per coordinate asks for `constant_columns`.
        """
        if self._new(3).constant_columns or self._new(3).granularity == "parameter":
            return
        generator, keep = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        balancers, answers = (self._new(3), self._new(3)), []
        for number, count in enumerate((64, 64, 40)):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
            rows = self._rows(3, number)[:, :count]
            context = self._context(number, None, 3, generator)
            one = self._taken(balancers[0], rows, context)
            if not torch.equal(generator.get_state(), keep.get_state()):
                return  # what it draws for a coordinate is that of the coordinate's place
            other = self._taken(
                balancers[1], rows[:, order], self._context(number, None, 3, generator)
            )
            answers.append((one[order], other))
        assert all(close(one, other, 1e-9) for one, other in answers), (
            "other columns in another step change what it answers: it keeps a value per "
            "coordinate, and must ask for `constant_columns`"
        )

    def test_columns_that_nobody_reaches(self) -> None:
        """Otherwise a run stops in a phase that leaves a part of the network out."""
        balancer = self._new(3)
        for number in range(4):
            rows = self._rows(3, number)
            rows[:, 16 * number : 16 * number + 16] = 0
            answer = self._taken(balancer, rows, self._context(number, None, 3))
            assert bool(answer.isfinite().all()), "not finite where columns are zeros"

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
        if context is not None and balancer.granularity == "parameter":
            values = given.new_ones(2, given.shape[1] // 2)
            context.place = Place(number=0, values=values)
        return balancer.combine(given, context)

    def _answer(
        self, balancer: GradientBalancer, rows: Tensor, context: BalancerContext | None
    ) -> Tensor:
        return self._ask(balancer, self._input(rows), context)

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
