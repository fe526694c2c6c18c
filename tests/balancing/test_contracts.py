"""From losses to `.grad`: the engine against autograd in float64."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch.nn import Parameter

from mtlcore.balancing import (
    BalancerContext,
    Balancing,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
    TaskGradients,
)
from mtlcore.errors import UsageError
from mtlcore.standard.balancers import Equal, Fixed
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch, tiny_learner

NAMES = ("red", "green", "blue")
TASKS = tuple(Task(name=name, kind="depth", channels=1) for name in NAMES)
NEAR = {"rtol": 1e-12, "atol": 1e-14}


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


class Ones(Given):
    def __init__(self):
        super().__init__([1.0] * 5)


class Largest(GradientBalancer):
    """Per coordinate the entry of the largest size; remembers the shapes it was asked for."""

    def __init__(self, elementwise):
        super().__init__()
        self.granularity = "element" if elementwise else "whole"
        self.shapes = []

    def combine(self, rows, context=None):
        self.shapes.append(tuple(rows.shape))
        return rows.gather(0, rows.abs().argmax(0, keepdim=True))[0]


class Problem:
    """Two shared parameters and one per task; blue's loss does not reach the second shared one."""

    def __init__(self, seed=0):
        rng = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return Parameter(torch.randn(*shape, generator=rng, dtype=torch.float64))

        self.first, self.second = draw(3, 4), draw(4)
        self.own = {name: draw(4) for name in NAMES}
        self.other = draw(2)
        self.inputs = torch.randn(2, 3, generator=rng, dtype=torch.float64)

    @property
    def shared(self):
        return [self.first, self.second]

    def parameters(self):
        return [*self.shared, *self.own.values(), self.other]

    def gradients(self):
        own = {name: [p] for name, p in self.own.items()}
        return TaskGradients(self.shared, own, [self.other])

    def losses(self, names=NAMES, batch=0):
        hidden = torch.tanh(self.inputs[batch] @ self.first)
        losses = {}
        for number, name in enumerate(names):
            features = hidden if name == "blue" else hidden * self.second
            loss = ((features * self.own[name]).sum() - number - 1) ** 2
            losses[name] = loss + self.other.square().sum() / 2
        return losses

    def expected(self, shared, own, names=NAMES, batches=(0,)):
        """Gradients of the losses weighed as told; None where nothing reaches."""
        total = 0
        for batch in batches:
            for name, loss in self.losses(names, batch).items():
                total = total + shared[name] * loss
        reached = torch.autograd.grad(total, self.shared, allow_unused=True)
        heads = dict.fromkeys(NAMES)
        others = torch.zeros_like(self.other)
        for batch in batches:
            for name, loss in self.losses(names, batch).items():
                head, other = torch.autograd.grad(loss, [self.own[name], self.other])
                head = head * own[name]
                heads[name] = head if heads[name] is None else heads[name] + head
                others = others + other
        return [*reached, *heads.values(), others]

    def check(self, expected):
        for parameter, gradient in zip(self.parameters(), expected, strict=True):
            if gradient is None:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, gradient, **NEAR)


ALL_ONE = dict.fromkeys(NAMES, 1.0)


def context(step=0, **known):
    return BalancerContext(tasks=NAMES, step=step, **known)


def test_equal_weights_through_rows_are_the_plain_sum():
    by_rows, by_sum = Problem(), Problem()
    rows, one = by_rows.gradients(), by_sum.gradients()
    rows.collect_rows(by_rows.losses())
    rows.apply(Ones(), context())
    one.collect_sum([*by_sum.losses().values()])
    one.apply(None, context())
    plain = Problem()
    sum(plain.losses().values()).backward()
    for problem in (by_rows, by_sum):
        problem.check([p.grad for p in plain.parameters()])


def test_weights_are_of_the_shared_parameters_only():
    problem = Problem()
    gradients = problem.gradients()
    gradients.collect_rows(problem.losses())
    result = gradients.apply(Given([2.0, -0.5, 3.0]), context())
    assert result.weights == {"red": 2.0, "green": -0.5, "blue": 3.0}
    problem.check(problem.expected(result.weights, ALL_ONE))


def test_a_second_row_of_weights_is_of_the_heads():
    problem = Problem()
    gradients = problem.gradients()
    gradients.collect_rows(problem.losses())
    given = Given([[2.0, -0.5, 3.0], [0.1, 7.0, 1.0]])
    result = gradients.apply(given, context())
    own = dict(zip(NAMES, (0.1, 7.0, 1.0), strict=True))
    problem.check(problem.expected(result.weights, own))


def test_the_gramian_is_that_of_the_jacobian():
    problem = Problem()
    gradients = problem.gradients()
    gradients.collect_rows(problem.losses())
    tasks, gramian = gradients.gramian()
    rows = []
    for loss in problem.losses().values():
        found = torch.autograd.grad(loss, problem.shared, allow_unused=True, retain_graph=True)
        parts = [torch.zeros_like(p) if g is None else g
                 for p, g in zip(problem.shared, found, strict=True)]  # fmt: skip
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    assert tasks == NAMES and gramian.dtype == torch.float64
    torch.testing.assert_close(gramian, jacobian @ jacobian.T, **NEAR)
    # The second shared parameter counts as zero for blue.
    assert not jacobian[2, 12:].any()
    result = gradients.apply(Ones(), context())
    cosine = torch.nn.functional.cosine_similarity(jacobian[0], jacobian[2], dim=0)
    assert result.cosines["red", "blue"] == pytest.approx(float(cosine), rel=1e-12)


def test_absent_tasks_have_no_row():
    problem = Problem()
    gradients, ones = problem.gradients(), Ones()
    gradients.collect_rows(problem.losses(("green", "blue")))
    result = gradients.apply(ones, context())
    assert list(result.weights) == ["green", "blue"] and ones.gramian.shape == (2, 2)
    problem.check(problem.expected(ALL_ONE, ALL_ONE, ("green", "blue")))
    assert problem.own["red"].grad is None


def test_what_no_loss_reaches_has_no_gradient():
    problem = Problem()
    gradients = problem.gradients()
    problem.second.grad = torch.ones_like(problem.second)
    gradients.collect_rows(problem.losses(("blue",)))
    gradients.apply(Ones(), context())
    assert problem.second.grad is None


def test_rows_of_micro_batches_are_summed_before_the_balancer_is_asked():
    problem = Problem()
    gradients, given = problem.gradients(), Given([2.0, -0.5, 3.0])
    for batch in (0, 1):
        gradients.collect_rows(problem.losses(batch=batch))
    result = gradients.apply(given, context())
    assert given.asked == 1
    problem.check(problem.expected(result.weights, ALL_ONE, batches=(0, 1)))
    # What was collected is used up.
    gradients.collect_rows(problem.losses())
    gradients.apply(given, context())
    problem.check(problem.expected(result.weights, ALL_ONE))


@pytest.mark.parametrize("balancer", [None, Ones(), Largest(True), Largest(False)])
def test_gradients_share_no_memory(balancer):
    """Autograd gives one tensor for both of a + b, and an expanded one for a sum."""
    a, b, c = (Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
    gradients = TaskGradients([a, b], {"red": [c]})
    losses = {"red": (a + b).sum() + c.sum()}
    if balancer:
        gradients.collect_rows(losses)
    else:
        gradients.collect_sum([*losses.values()])
    gradients.apply(balancer, context())
    a.grad.mul_(2)
    a.grad[0] = 5.0
    b.grad[1] = 7.0
    c.grad[2] = 9.0
    assert a.grad.tolist() == [5.0, 2.0, 2.0]
    assert b.grad.tolist() == [1.0, 7.0, 1.0]
    assert c.grad.tolist() == [1.0, 1.0, 9.0]


@pytest.mark.parametrize("poison", ["gramian", "weights"])
def test_nothing_is_written_where_something_is_not_finite(poison):
    problem = Problem()
    gradients = problem.gradients()
    if poison == "gramian":
        balancer, losses = Ones(), problem.losses()
        losses["red"] = losses["red"] * float("nan")
    else:
        balancer, losses = Given([1.0, float("inf"), 1.0]), problem.losses()
    before = torch.ones_like(problem.first)
    problem.first.grad = before
    gradients.collect_rows(losses)
    result = gradients.apply(balancer, context())
    assert result.status == "not finite" and result.weights == {} and result.heads == {}
    assert problem.first.grad is before and problem.second.grad is None
    # Nor does anything stay behind for the next step.
    problem.first.grad = None
    gradients.collect_rows(problem.losses())
    gradients.apply(Ones(), context())
    problem.check(problem.expected(ALL_ONE, ALL_ONE))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_weights_that_are_known_need_no_rows(scale):
    """Also with micro-batches, other weights for heads, and one that is zero."""
    problem = Problem()
    gradients = problem.gradients()
    shared, own = (2.0, 0.0, -3.0), (1.0, 4.0, 0.5)
    weights = {t: [s, h] for t, s, h in zip(NAMES, shared, own, strict=True)}
    for batch, names in ((0, NAMES), (1, NAMES)):
        losses = {t: loss * scale for t, loss in problem.losses(names, batch).items()}
        gradients.collect_weighted(losses, weights, retain_graph=True)
        gradients.collect_sum([losses["red"] * 0])
    gradients.unscale(scale)
    result = gradients.apply(Ones(), context())
    assert result.weights == {} and result.heads == {}
    named = (dict(zip(NAMES, values, strict=True)) for values in (shared, own))
    problem.check(problem.expected(*named, batches=(0, 1)))
    gradients.collect_weighted(problem.losses(("blue",)), weights)
    gradients.apply(Ones(), context())
    assert problem.second.grad is None and problem.own["red"].grad is None
    gradients.collect_weighted({}, weights)
    gradients.apply(Ones(), context())
    assert all(p.grad is None for p in problem.parameters())


@pytest.mark.parametrize("elementwise", [True, False])
def test_gradient_balancers_see_rows_and_give_the_direction(elementwise):
    problem = Problem()
    gradients, largest = problem.gradients(), Largest(elementwise)
    gradients.collect_rows(problem.losses())
    gradients.apply(largest, context())
    assert largest.shapes == ([(3, 12), (3, 4)] if elementwise else [(3, 16)])
    plain = problem.expected(ALL_ONE, ALL_ONE)
    for number, parameter in enumerate(problem.shared):
        rows = torch.stack(
            [
                torch.zeros_like(parameter) if g is None else g
                for loss in problem.losses().values()
                for g in torch.autograd.grad(
                    loss, [parameter], allow_unused=True, retain_graph=True
                )
            ]
        )
        plain[number] = rows.gather(0, rows.abs().argmax(0, keepdim=True))[0]
    problem.check(plain)


@pytest.mark.parametrize("elementwise", [True, False])
def test_gradient_balancers_leave_alone_what_no_task_reaches(elementwise):
    problem = Problem()
    gradients, largest = problem.gradients(), Largest(elementwise)
    gradients.collect_rows(problem.losses(("blue",)))
    gradients.apply(largest, context())
    assert problem.second.grad is None and problem.first.grad is not None
    assert largest.shapes == [(1, 12)]


@pytest.mark.parametrize("weights", [[0.0] * 3, [[0.0] * 3, [0.0] * 3]])
def test_cross_terms_weigh_one_under_every_balancer(weights):
    problem = Problem()
    gradients = problem.gradients()
    losses = problem.losses()
    gradients.collect_rows(losses, retain_graph=True)
    gradients.collect_sum([losses["red"] * 0.5])
    gradients.apply(Given(weights), context())
    head = problem.own["red"]
    cross = torch.autograd.grad(problem.losses()["red"] * 0.5, [*problem.shared, head])
    # Unless the balancer weighs heads too, the task's own loss is learnt there with weight 1.
    (own,) = torch.autograd.grad(problem.losses()["red"], [head])
    at_head = cross[2] if len(weights) == 2 else cross[2] + own
    expected = (*cross[:2], at_head)
    for parameter, gradient in zip([*problem.shared, head], expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **NEAR)


def test_frozen_parameters_are_left_alone():
    problem = Problem()
    problem.second.requires_grad_(False)
    problem.own["red"].requires_grad_(False)
    gradients = problem.gradients()
    gradients.collect_rows(problem.losses())
    gradients.apply(Ones(), context())
    assert problem.second.grad is None and problem.own["red"].grad is None
    assert problem.first.grad is not None


def test_a_whole_learner_through_rows_is_the_plain_sum():
    batch, grads = tiny_batch(), []
    batch = attrs.evolve(batch, inputs=batch.inputs.double())
    for chain in ([], [Equal(), Ones()], [Fixed(weights={"depth": 1.0})]):
        learner = tiny_learner(chain).double()
        losses = learner(batch, tuple(learner.model.tasks))
        gradients = learner.task_gradients()
        if learner.balancing.finisher is None:
            gradients.collect_sum([*losses.balanced.values()])
        else:
            gradients.collect_rows(losses.balanced)
        gradients.apply(learner.balancing.finisher, learner.context)
        grads.append([p.grad for p in learner.parameters()])
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


def test_the_order_of_a_chain_is_checked():
    with pytest.raises(UsageError, match="must be the last"):
        Balancing([Ones(), Equal()])
    with pytest.raises(UsageError, match="must be the last"):
        Balancing([Ones(), Largest(True)])
    with pytest.raises(UsageError, match="update_every"):
        Balancing([Equal()], update_every=2)
    chain = Balancing([Equal(), Fixed(weights={"red": 2.0}), Ones()])
    chain.prepare(TASKS)
    losses = {name: torch.ones(()) for name in NAMES}
    assert float(chain.transform(losses, context())["red"]) == 2.0
    assert isinstance(chain.finisher, Ones)
    assert all(isinstance(b, LossBalancer) for b in chain.loss_balancers)
