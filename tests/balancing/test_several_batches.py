"""Gradients of several independent batches, and of a validation batch: against autograd.

One file: everything is compared with the same gradients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, Balancing, GradientBalancer, GramianBalancer
from mtlcore.balancing import rows as rows_module
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.optimizers import GradientDescent, Schedule, StepReport
from mtlcore.optimizers.loss_scale import LossScale
from mtlcore.standard.balancers import Equal
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore.testing.base import same, state_of

TASKS = tuple(task.name for task in TINY_TASKS)
RATE = 0.1
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "compare-batches.md"
NEAR = {"rtol": 1e-9, "atol": 1e-12}


def example(name: str) -> SimpleNamespace:
    """Return what a file of the page holds."""
    pattern = rf"<!-- test: file {name}\.py -->\n```python\n(.*?)^```"
    found = re.search(pattern, PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(found[1], names)
    return SimpleNamespace(**names)


class Spy(GramianBalancer):
    """Answers what it is told to, and keeps what it sees.

    Args:
        answer: The weights.
        batches: As announced.
        validation: As announced.
        rate: Of the look ahead, by these weights.
    """

    def __init__(
        self, answer: Tensor, batches: int = 2, validation: str | None = None, rate: float = 0.0
    ) -> None:
        super().__init__()
        self.answer, self.batches, self.validation, self.rate = answer, batches, validation, rate
        self.told: list[Tensor | None] = []

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        self.gramian, self.gramians, self.present = gramian, context.gramians, context.present
        self.numbers = context.labelled_batches
        if self.validation is not None:
            self.products = context.validation_products(self.answer, self.rate)
        return self.answer[..., : len(gramian)]

    def after_step(self, context: BalancerContext) -> None:
        assert context.validation_products is None
        self.told.append(context.gramians)


def double(batch: Batch) -> Batch:
    targets = {n: t.double() if t.is_floating_point() else t for n, t in batch.targets.items()}
    return attrs.evolve(batch, inputs=batch.inputs.double(), targets=targets)


def some_batch(seed: int, count: int = 4, absent: Sequence[str] = ()) -> Batch:
    return double(tiny_batch(count, seed=seed, absent=absent))


def parts(batch: Batch, number: int) -> list[Batch]:
    """Cut a batch into micro-batches."""
    if number == 1:
        return [batch]
    size = len(batch) // number
    return [
        attrs.evolve(
            batch,
            inputs=batch.inputs[i : i + size],
            targets={n: t[i : i + size] for n, t in batch.targets.items()},
            valid={n: v[i : i + size] for n, v in batch.valid.items()},
            count={n: int(v[i : i + size].sum()) for n, v in batch.valid.items()},
            labelled={n: labelled[i : i + size] for n, labelled in batch.labelled.items()},
            view=batch.view[i : i + size],
            keys=batch.keys[i : i + size],
            meta=batch.meta[i : i + size],
        )
        for i in range(0, len(batch), size)
    ]


def exact(balancer: GramianBalancer, update_every: int = 1) -> Learner:
    """Return a learner in float64 whose batch norms see every sample alike."""
    learner = tiny_learner([balancer], update_every=update_every).double()
    learner.model.eval()
    return learner


def descend(learner: Learner, lr: float = RATE) -> GradientDescent:
    return GradientDescent(learner, lambda groups: torch.optim.SGD(groups, lr), Schedule(), None)


def plan_of(
    groups: Sequence[Batch], validation: Batch | None = None, pieces: int = 1
) -> LoadedPlan:
    batches: list[Batch] = []
    episodes = []
    for group, batch in enumerate(groups):
        for part in parts(batch, pieces):
            episodes.append(Episode(TASKS, len(batches), group=group))
            batches.append(part)
    of_validation = []
    for part in [] if validation is None else parts(validation, pieces):
        of_validation.append(Episode(TASKS, len(batches)))
        batches.append(part)
    return LoadedPlan(tuple(batches), tuple(episodes), tuple(of_validation))


def step(learner: Learner, plan: LoadedPlan) -> StepReport:
    report = descend(learner).step(learner, plan)
    assert report.skipped is None
    return report


def rows_of(learner: Learner, batch: Batch) -> dict[str, list[Tensor]]:
    """Return task -> gradient by autograd for each parameter of the model; zeros where none."""
    parameters = list(learner.model.parameters())
    losses = learner.supervised_losses(batch, TASKS)
    return {
        task: [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(
                parameters,
                torch.autograd.grad(losses[task], parameters, retain_graph=True, allow_unused=True)
                if task in losses
                else [None] * len(parameters),
                strict=True,
            )
        ]
        for task in TASKS
    }


def split(learner: Learner, row: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the shared part of a gradient, and that at each task's own parameters."""
    of = dict(zip(map(id, learner.model.parameters()), row, strict=True))
    shared = torch.cat([of[id(p)].flatten() for p in learner.model.shared_parameters()])
    own = {
        task: torch.cat([of[id(p)].flatten() for p in learner.model.task_parameters(task)])
        for task in TASKS
    }
    return shared, own


def matrix(learner: Learner, rows: Mapping[str, Sequence[Tensor]]) -> Tensor:
    return torch.stack([split(learner, row)[0] for row in rows.values()])


@pytest.fixture(autouse=True, params=["small", "large"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count parameters as small or as large ones, whose rows are kept in other ways."""
    monkeypatch.setattr(rows_module, "SMALL", {"small": 10**6, "large": 0}[request.param])


ANSWERS = {
    "shared": torch.tensor([2.0, -0.5, 3.0], dtype=torch.float64),
    "shared and heads": torch.tensor([[2.0, -0.5, 3.0], [0.5, 1.5, 0.1]], dtype=torch.float64),
    "each batch": torch.tensor(
        [[[2.0, -0.5, 3.0], [0.5, 1.5, 0.1]], [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]],
        dtype=torch.float64,
    ),
}


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("answer", ANSWERS)
def test_products_and_direction_are_those_of_autograd(answer: str, pieces: int) -> None:
    spy = Spy(ANSWERS[answer])
    learner = exact(spy)
    groups = [some_batch(0), some_batch(1)]
    rows = [rows_of(learner, batch) for batch in groups]
    before = [p.detach().clone() for p in learner.model.parameters()]
    report = step(learner, plan_of(groups, pieces=pieces))
    first, second = (matrix(learner, found) for found in rows)
    seen = spy.gramians
    assert seen is not None and spy.told[0] is seen
    torch.testing.assert_close(seen[0, 1], first @ second.T, **NEAR)
    torch.testing.assert_close(seen[1, 0], second @ first.T, **NEAR)
    torch.testing.assert_close(seen[1, 1], second @ second.T, **NEAR)
    mean = (first + second) / 2
    torch.testing.assert_close(spy.gramian, mean @ mean.T, **NEAR)
    # The direction, at every parameter.
    each = ANSWERS[answer]
    if each.dim() == 1:
        each = torch.stack([each, torch.ones_like(each)])
    if each.dim() == 2:
        each = torch.stack([each, each]) / 2
    own = {id(p): n for n, t in enumerate(TASKS) for p in learner.model.task_parameters(t)}
    for place, (p, old) in enumerate(zip(learner.model.parameters(), before, strict=True)):
        expected = sum(
            each[b, int(id(p) in own), n] * rows[b][task][place]
            for b in range(2)
            for n, task in enumerate(TASKS)
        )
        torch.testing.assert_close((old - p.detach()) / RATE, expected, rtol=1e-7, atol=1e-9)
    assert list(report.balancing.weights.values()) == pytest.approx(each.sum(0)[0].tolist())
    losses = [learner.evaluate_losses(batch, TASKS) for batch in groups]
    assert set(report.losses) == set(losses[0])


@pytest.mark.parametrize("scope", ["shared", "last_shared"])
def test_a_task_may_be_absent_from_a_batch(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(ANSWERS["shared"])
    spy.scope = scope
    learner = exact(spy)
    trunk = learner.model.backbone.trunk
    if scope == "last_shared":
        monkeypatch.setattr(
            learner.model.backbone, "last_shared_parameters", lambda: [trunk[0].weight]
        )
    groups = [some_batch(0, absent=["depth"]), some_batch(1, absent=["normals"])]
    rows = [rows_of(learner, batch) for batch in groups]
    before = [p.detach().clone() for p in learner.model.parameters()]
    means = [learner.evaluate_losses(batch, TASKS) for batch in groups]
    report = step(learner, plan_of(groups))
    assert spy.present == ("segmentation", "normals", "depth")
    assert spy.gramians is not None
    assert spy.gramians[0, :, 2].abs().sum() == 0 == spy.gramians[1, :, 1].abs().sum()
    assert spy.numbers is not None and spy.numbers.tolist() == [2, 1, 1]
    if scope == "shared":
        order = [TASKS.index(task) for task in spy.present]
        found = [matrix(learner, each)[order] for each in rows]
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            torch.testing.assert_close(spy.gramians[i, j], found[i] @ found[j].T, **NEAR)
    assert spy.gramians[0, 0, 0, 0] > 0
    alone = {"depth": 1, "normals": 0}
    for task, batch in alone.items():
        assert report.losses[task] == pytest.approx(means[batch][task])
    both = (means[0]["segmentation"] + means[1]["segmentation"]) / 2
    assert report.losses["segmentation"] == pytest.approx(both)
    weights = dict(zip(spy.present, ANSWERS["shared"].tolist(), strict=True))
    shared = set(map(id, learner.model.shared_parameters()))
    for place, (p, old) in enumerate(zip(learner.model.parameters(), before, strict=True)):
        gradient = {
            task: rows[alone[task]][task][place]
            if task in alone
            else (rows[0][task][place] + rows[1][task][place]) / 2
            for task in TASKS
        }
        expected = sum((weights[t] if id(p) in shared else 1) * g for t, g in gradient.items())
        torch.testing.assert_close((old - p.detach()) / RATE, expected, rtol=1e-7, atol=1e-9)


def test_weights_are_reused_for_the_mean_between_two_updates() -> None:
    spy = Spy(ANSWERS["shared and heads"])
    learner = exact(spy, update_every=2)
    optimizer, groups = descend(learner, 0.0), [some_batch(0), some_batch(1)]
    gradients = []
    for number in range(2):
        learner.context.step = number
        with pytest.MonkeyPatch.context() as patch:
            kept: dict[str, Tensor] = {}

            def keep(*_: object, kept: dict[str, Tensor] = kept, **__: object) -> None:
                kept |= {n: p.grad.clone() for n, p in learner.named_parameters()}

            patch.setattr(optimizer._update._torch, "step", keep)
            assert optimizer.step(learner, plan_of(groups)).skipped is None
        gradients.append(kept)
    assert spy.told[0] is not None and spy.told[1] is None
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_validation_products_are_those_of_autograd(rate: float, batches: int, pieces: int) -> None:
    answer = ANSWERS["shared and heads"]
    spy = Spy(answer, batches, "val", rate)
    learner = exact(spy)
    groups = [some_batch(n) for n in range(batches)]
    validation = some_batch(7, absent=["normals"])
    each = [rows_of(learner, batch) for batch in groups]
    mean = {t: [sum(g) / batches for g in zip(*(r[t] for r in each), strict=True)] for t in TASKS}
    ahead = tiny_learner().double()
    ahead.model.load_state_dict(learner.model.state_dict())
    ahead.model.eval()
    own = {id(p): n for n, t in enumerate(TASKS) for p in learner.model.task_parameters(t)}
    with torch.no_grad():
        for place, (p, q) in enumerate(
            zip(learner.model.parameters(), ahead.model.parameters(), strict=True)
        ):
            for number, task in enumerate(TASKS):
                q -= rate * answer[int(id(p) in own), number] * mean[task][place]
    validated = rows_of(ahead, validation)
    step(learner, plan_of(groups, validation, pieces))
    products, of_own = spy.products
    torch.testing.assert_close(
        products, matrix(learner, mean) @ matrix(learner, validated).T, **NEAR
    )
    assert products[:, 2].abs().sum() == 0 == of_own[2]
    expected = [
        float(split(learner, mean[t])[1][t] @ split(learner, validated[t])[1][t]) for t in TASKS
    ]
    torch.testing.assert_close(of_own, torch.tensor(expected, dtype=torch.float64), **NEAR)


def test_a_loss_scale_changes_nothing() -> None:
    found = []
    for dynamic in (False, True):
        spy = Spy(ANSWERS["shared"], 2, "val", 0.3)
        learner = exact(spy)
        optimizer = descend(learner)
        optimizer._update._scale = LossScale(dynamic=dynamic)
        assert (optimizer._update.scale == 1) is not dynamic
        groups = [some_batch(0), some_batch(1)]
        assert optimizer.step(learner, plan_of(groups, some_batch(2))).skipped is None
        found.append([spy.gramians, *spy.products, *learner.model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_nobody_learns_from_the_validation_batch() -> None:
    """Nor do buffers or random streams notice it, and parameters come back bit for bit."""
    states, streams = [], []
    for validation, rate in [(None, 0.0), (some_batch(7), 0.0), (some_batch(8), 0.3)]:
        split_name = None if validation is None else "val"
        learner = tiny_learner([Spy(ANSWERS["shared"], 1, split_name, rate)]).double()
        torch.manual_seed(5)
        step(learner, plan_of([some_batch(0)], validation))
        states.append(state_of(learner))
        streams.append(torch.get_rng_state())
    for state, stream in zip(states[1:], streams[1:], strict=True):
        assert same(states[0], state)
        assert torch.equal(streams[0], stream)


def test_a_validation_batch_that_is_not_finite_skips_the_step() -> None:
    learner = tiny_learner([Spy(ANSWERS["shared"], 2, "val", 0.3)]).double()
    optimizer = descend(learner)
    validation = some_batch(7)
    validation.inputs[0] = float("nan")
    before, generator = state_of(learner), learner.context.generator.get_state()
    report = optimizer.step(learner, plan_of([some_batch(0), some_batch(1)], validation))
    assert report.skipped is not None and "validation loss of" in report.skipped
    assert same(before, state_of(learner))
    assert torch.equal(generator, learner.context.generator.get_state())
    assert learner.context.validation_products is None
    good = plan_of([some_batch(0), some_batch(1)], some_batch(7))
    assert optimizer.step(learner, good).skipped is None


def test_a_validation_loss_that_is_not_finite_skips_a_step_of_a_finite_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = tiny_learner([Spy(ANSWERS["shared"], 1, "val", 0.3)]).double()
    optimizer = descend(learner)
    validation, losses_of = some_batch(7), learner.supervised_losses

    def supervised(batch: Batch, *rest: Any) -> dict[str, Tensor]:
        beyond = float("inf") if batch is validation else 0.0
        return {task: loss + beyond for task, loss in losses_of(batch, *rest).items()}

    monkeypatch.setattr(learner, "supervised_losses", supervised)
    before = state_of(learner)
    report = optimizer.step(learner, plan_of([some_batch(0)], validation))
    assert report.skipped is not None and "validation loss of" in report.skipped
    assert same(before, state_of(learner))


def test_modo_of_the_page_is_the_published_rule() -> None:
    modo = example("modo")
    balancer = modo.MoDo(step=0.5, decay=0.1)
    learner = exact(balancer)
    optimizer = descend(learner)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for number in range(3):
        groups = [some_batch(2 * number), some_batch(2 * number + 1)]
        first, second = (matrix(learner, rows_of(learner, batch)) for batch in groups)
        report = optimizer.step(learner, plan_of(groups))
        weights = modo.to_simplex(weights - 0.5 * (first @ (second.T @ weights) + 0.1 * weights))
        assert list(report.balancing.weights.values()) == pytest.approx(weights.tolist())
    assert weights.max() - weights.min() > 0.01


def test_auto_lambda_of_the_page_goes_down_the_validation_loss() -> None:
    """Its slopes are those of a second derivative through the step, heads and all."""
    balancer = example("auto_lambda").AutoLambda(primary=("depth",), lr=1.0, start=0.2)
    learner = exact(balancer)
    batch, validation = some_batch(0), some_batch(1)
    old = torch.full((3,), 0.2, dtype=torch.float64, requires_grad=True)
    losses = learner.supervised_losses(batch, TASKS)
    names = dict(learner.model.named_parameters())
    total = sum(w * losses[t] for w, t in zip(old, TASKS, strict=True))
    slopes = torch.autograd.grad(total, names.values(), create_graph=True)
    moved = {f"model.{n}": p - RATE * g for (n, p), g in zip(names.items(), slopes, strict=True)}
    later = learner.losses_at(moved, validation, TASKS).raw["depth"]
    (expected,) = torch.autograd.grad(later, old)
    report = step(learner, plan_of([batch], validation))
    new = torch.tensor(list(report.balancing.weights.values()), dtype=torch.float64)
    torch.testing.assert_close(new, old.detach() - expected, rtol=1e-9, atol=1e-12)
    assert (new - 0.2).abs().min() > 1e-6
    assert report.balancing.heads == report.balancing.weights


class Two(GradientBalancer):
    batches = 2

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.sum(0)


def announced(scope: str = "shared", **changes: object) -> GramianBalancer:
    balancer = Spy(ANSWERS["shared"], **changes)  # type: ignore[arg-type]
    balancer.scope = scope  # type: ignore[assignment]
    return balancer


@pytest.mark.parametrize(
    ("balancers", "message"),
    [
        (lambda: [Two()], "Two asks for several independent batches"),
        (lambda: [announced("features")], "the scope 'features'"),
        (lambda: [announced("last_shared", batches=1, validation="val")], "'last_shared'"),
        (lambda: [announced(batches=0)], "0 is no number of batches"),
        (lambda: [announced(validation="test")], "'test' is not a split"),
    ],
)
def test_what_cannot_be_compared_is_refused(balancers, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Balancing(balancers())


def test_a_plan_without_the_batches_is_refused() -> None:
    learner = exact(Spy(ANSWERS["shared"], 2, "val"))
    optimizer = descend(learner)
    with pytest.raises(UsageError, match="has 1 independent batches, and the balancer needs 2"):
        optimizer.step(learner, plan_of([some_batch(0)], some_batch(1)))
    with pytest.raises(UsageError, match="has no validation batch"):
        optimizer.step(learner, plan_of([some_batch(0), some_batch(1)]))


def test_a_loop_of_ones_own_does_the_same() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(5, 4).double(), {t: nn.Linear(4, 1).double() for t in "ab"}
    inputs = torch.randn(3, 6, 5, dtype=torch.float64)
    answer = torch.tensor([[2.0, -0.5], [0.5, 1.5]], dtype=torch.float64)
    spy = Spy(answer, 2, "val", 0.3)

    def losses(number: int, tasks: str = "ab") -> dict[str, Tensor]:
        features = trunk(inputs[number]).tanh()
        return {task: heads[task](features).square().mean() for task in tasks}

    shared = list(trunk.parameters())
    found = [
        {t: torch.autograd.grad(x, [*shared, *heads[t].parameters()], retain_graph=True)
         for t, x in losses(n).items()}
        for n in range(2)
    ]  # fmt: skip
    result = spy.backward(
        losses(0), shared, more_losses=[losses(1)], validation=lambda: losses(2, "b")
    )
    assert result.weights == {"a": 2.0, "b": -0.5} and result.heads == {"a": 0.5, "b": 1.5}
    first, second = (
        torch.stack([torch.cat([g.flatten() for g in found[n][t][:2]]) for t in "ab"])
        for n in range(2)
    )
    assert spy.gramians is not None
    torch.testing.assert_close(spy.gramians[0, 1], first @ second.T)
    mean = (first + second) / 2
    written = torch.cat([p.grad.flatten() for p in shared])
    torch.testing.assert_close(written, answer[0] @ mean)
    for number, task in enumerate("ab"):
        for place, p in enumerate(heads[task].parameters(), 2):
            gradient = (found[0][task][place] + found[1][task][place]) / 2
            torch.testing.assert_close(p.grad, answer[1, number] * gradient)
    products, own = spy.products
    assert products[:, 0].abs().sum() == 0 == own[0]
    # By hand: the validation gradient of "b" after the step ahead.
    with torch.no_grad():
        for p in [*shared, *(p for head in heads.values() for p in head.parameters())]:
            p -= 0.3 * p.grad
    ahead = torch.autograd.grad(losses(2)["b"], shared)
    torch.testing.assert_close(products[:, 1], mean @ torch.cat([g.flatten() for g in ahead]))


def test_a_loop_of_ones_own_is_told_what_is_missing() -> None:
    weight = nn.Parameter(torch.ones(2))
    losses = {"a": weight.sum(), "b": weight.square().sum()}
    spy = Spy(ANSWERS["shared"][:2], 2, "val")
    with pytest.raises(UsageError, match=r"needs the losses of 2 .*got those of 1.*more_losses"):
        spy.backward(losses, [weight])
    with pytest.raises(UsageError, match=r"hand backward.*validation=.*a function"):
        spy.backward(losses, [weight], more_losses=[losses])
    with pytest.raises(UsageError, match="Equal needs the losses of 1 independent batch a step"):
        Equal().backward(losses, [weight], more_losses=[losses])
    with pytest.raises(UsageError, match="has no use for a validation batch"):
        Equal().backward(losses, [weight], validation=lambda: losses)
