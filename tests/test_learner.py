"""The learner as a function of its parameters, and balancers in anybody's loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from mtlcore.balancing import BalancerContext, GradientBalancer, GramianBalancer
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.losses import CrossTaskLoss, reduce_loss
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.standard.balancers import Fixed, Uncertainty
from mtlcore.standard.losses import L1
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner


class Sum(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.ones(len(gramian), dtype=torch.float64)


class Halved(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.full((2, len(gramian)), 0.5, dtype=torch.float64)


class Mean(GradientBalancer):
    def combine(self, rows, context=None):
        return rows.mean(dim=0)


def test_losses_at_the_same_parameters_are_the_same() -> None:
    learner, batch = tiny_learner(), tiny_batch(4)
    tasks = tuple(learner.model.tasks)
    here = learner.losses_at(dict(learner.named_parameters()), batch, tasks)
    there = learner(batch, tasks)
    assert here.raw.keys() == there.raw.keys()
    for task, loss in here.raw.items():
        assert torch.equal(loss, there.raw[task])


def test_losses_at_other_parameters_touch_no_buffer_and_carry_gradients() -> None:
    learner, batch = tiny_learner(), tiny_batch(4)
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    assert before  # there is a batch norm
    moved = {name: (p.detach() + 0.1).requires_grad_() for name, p in learner.named_parameters()}
    losses = learner.losses_at(moved, batch, tuple(learner.model.tasks))
    sum(losses.balanced.values()).backward()
    assert all(p.grad is not None for p in moved.values())
    assert all(p.grad is None for p in learner.parameters())
    for name, buffer in learner.named_buffers():
        assert torch.equal(buffer, before[name])


def test_parameters_that_are_frozen_are_in_no_group() -> None:
    learner = tiny_learner()
    head = learner.model.head("depth")
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    (group,) = learner.parameter_groups()
    frozen = {id(p) for p in head.parameters()}
    found = [id(p) for p in group["params"]]
    assert len(set(found)) == len(found)
    assert set(found) == {id(p) for p in learner.parameters()} - frozen


def test_supervised_losses_see_first_views_alone() -> None:
    learner, batch = tiny_learner().eval(), tiny_batch(6, views=(0, 0, 0, 1, 1, 1))
    found, first = (learner(b, learner.tasks) for b in (batch, batch.first_views()))
    for task, loss in first.raw.items():
        torch.testing.assert_close(found.raw[task], loss)


class Two(nn.Module):
    """A trunk and a head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4).double()
        self.heads = nn.ModuleDict({t: nn.Linear(4, 1).double() for t in ("a", "b")})

    def losses(self) -> dict[str, torch.Tensor]:
        x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
        features = self.trunk(x).tanh()
        return {task: head(features).square().mean() for task, head in self.heads.items()}

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad.clone() for name, p in self.named_parameters()}


def expected(trunk: float, heads: float) -> dict[str, torch.Tensor]:
    model = Two()
    sum(model.losses().values()).backward()
    scale = {"trunk": trunk, "heads": heads}
    return {name: grad * scale[name.split(".")[0]] for name, grad in model.gradients().items()}


@pytest.mark.parametrize(
    ("balancer", "trunk", "heads"), [(Sum(), 1, 1), (Halved(), 0.5, 0.5), (Mean(), 0.5, 1)]
)
def test_backward_in_any_loop(balancer, trunk: float, heads: float) -> None:
    model = Two()
    result = balancer.backward(model.losses(), shared_params=model.trunk.parameters())
    for name, gradient in expected(trunk, heads).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    if isinstance(balancer, GramianBalancer):
        assert result.weights == pytest.approx(dict.fromkeys("ab", trunk))
        assert result.status == "converged"


def test_backward_adds_to_what_is_there() -> None:
    model = Two()
    for _ in range(2):
        Sum().backward(model.losses(), shared_params=model.trunk.parameters())
    for name, gradient in expected(2, 2).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_backward_of_a_balancer_of_losses() -> None:
    model, balancer = Two(), Fixed(weights={"a": 3.0, "b": 3.0})
    balancer.prepare([Task(name=name, kind="depth", channels=1) for name in "ab"])
    balancer.backward(model.losses())
    for name, gradient in expected(3, 3).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_a_forgotten_shared_parameter_is_refused() -> None:
    model = Two()
    with pytest.raises(UsageError, match=r"a and b both reach .* not in `shared_params`"):
        Sum().backward(model.losses(), shared_params=[model.trunk.weight])
    assert all(p.grad is None for p in model.parameters())


def test_a_context_is_passed_on() -> None:
    seen = []

    class Listening(GramianBalancer):
        def weights(self, gramian, context=None):
            seen.append(context)
            return torch.ones(len(gramian), dtype=torch.float64)

    model, context = Two(), BalancerContext(tasks=("a", "b"), step=7)
    Listening().backward(model.losses(), model.trunk.parameters(), context)
    assert seen == [context]


class Scaled(L1):
    """L1 times a parameter of its own."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.scale = nn.Parameter(torch.ones(()))


class Offset(CrossTaskLoss):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def needs(self, batch, tasks):
        return []

    def forward(self, batch, features, predictions):
        return {"offset": self.offset}


def test_groups_of_every_component_reach_the_optimizer() -> None:
    learner = tiny_learner(
        [Uncertainty()], losses={"depth": Scaled(TINY_TASKS[1])}, cross_task=[Offset()]
    )
    model = learner.model
    parts: list[nn.Module] = [
        model.backbone,
        model.head("depth"),
        learner.losses["task_depth"],
        learner.cross_task[0],
        learner.balancing.balancers[0],
    ]
    schedule = Schedule(name="poly", power=1.0)
    for number, part in enumerate(parts):
        parameter = next(part.parameters())
        rate = 10.0 ** -(number + 1)
        group = {"params": iter([parameter]), "lr": rate, "schedule": schedule}
        part.parameter_groups = partial(list, [group])  # type: ignore[assignment]
    made: list[torch.optim.Optimizer] = []

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, lr=0.5))
        return made[0]

    next(model.head("depth").parameters()).requires_grad_(False)
    optimizer = GradientDescent(learner, make, Schedule(), None)
    learner.context.progress = 0.5
    batch = tiny_batch(4)
    report = optimizer.step(learner, LoadedPlan((batch,), (Episode(learner.tasks, support=0),)))
    assert report.skipped is None
    rates = {id(p): group["lr"] for group in made[0].param_groups for p in group["params"]}
    for number, part in enumerate(parts):
        expected = None if number == 1 else 0.5 * 10.0 ** -(number + 1)  # the head's is frozen
        assert rates.get(id(next(part.parameters()))) == pytest.approx(expected)
    assert {*rates} == {id(p) for p in learner.parameters() if p.requires_grad}


def test_a_parameter_in_two_groups_is_refused() -> None:
    learner = tiny_learner()
    groups = [{"params": [*learner.model.backbone.trunk.parameters()]}]
    learner.model.backbone.parameter_groups = lambda: groups  # type: ignore[assignment]
    learner.model.backbone.trunk.parameter_groups = lambda: groups
    with pytest.raises(UsageError, match="two groups, of TinyBackbone and Sequential"):
        learner.parameter_groups()


def test_labelled_divides_a_samples_losses_by_its_number_of_labelled_tasks() -> None:
    """MTPSL's eq. 1: a mean over samples of the mean over the tasks that a sample has labels of."""
    batch = tiny_batch(4)
    missing = {"depth": (0, 1), "normals": (0,), "segmentation": (3,)}
    for task, rows in missing.items():
        batch.valid[task][list(rows)] = False
        batch.labelled[task] = tuple(i not in rows for i in range(4))
    learner = tiny_learner(normalisation="labelled").eval()
    found = learner(batch, learner.tasks).raw
    predictions = learner.predict(batch.inputs, learner.tasks)
    sums = dict.fromkeys(learner.tasks, 0.0)
    for i, number in enumerate((1, 2, 3, 2)):
        for task in learner.tasks:
            if i not in missing.get(task, ()):
                row = slice(i, i + 1)
                target, valid = batch.targets[task][row], batch.valid[task][row]
                loss = learner.losses[learner.model.tasks[task].key]
                value, _ = reduce_loss(loss, predictions[task][row], target, valid)
                sums[task] += float(value.detach()) / number / 4
    assert {task: float(loss.detach()) for task, loss in found.items()} == pytest.approx(sums)
    plain = tiny_learner(normalisation="sample").eval()(batch, learner.tasks).raw
    assert float(plain["depth"].detach()) > float(found["depth"].detach())
