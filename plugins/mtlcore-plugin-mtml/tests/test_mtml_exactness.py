"""A step is MAML written by hand: per episode and task, through autograd, in float64.

One file: every test compares a step with the same meta-gradient, computed by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from mtlcore.balancing import Balancer, BalancerContext, GradientBalancer, GramianBalancer
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.losses import Loss
from mtlcore.standard.balancers import Uncertainty
from mtlcore.testing import tiny_batch, tiny_learner
from mtlcore.testing.base import changes, same, state_of
from mtlcore_mtml.bilevel import MTML

TASKS = ("segmentation", "depth", "normals")
EPISODES = [chosen for size in (2, 3) for chosen in combinations(TASKS, size)]
INNER_LR = 0.05


class Normalised(GramianBalancer):
    """Weights that depend on the Gramian, others for heads."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        shared = gramian.diagonal().rsqrt() + 0.1 * gramian.sum(1)
        return torch.stack([shared, 1.0 + torch.arange(len(gramian))])


class OfLosses(Normalised):
    """The same where the trunk's last layer is compared."""

    scope = "last_shared"


class Median(GradientBalancer):
    """The middle value of each coordinate."""

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.median(0).values


CHAINS: dict[str, Callable[[], list[Balancer]]] = {
    "sum": list,
    "uncertainty": lambda: [Uncertainty(form="mtml", initial=0.3)],
    "gramian": lambda: [Normalised()],
    "both": lambda: [Uncertainty(form="mtml", initial=-0.2), Normalised()],
    "coordinates": lambda: [Median()],
}


def double(batch: Batch) -> Batch:
    targets = {t: x.double() if x.is_floating_point() else x for t, x in batch.targets.items()}
    return attrs.evolve(batch, inputs=batch.inputs.double(), targets=targets)


def plan_of(seed: int = 0, count: int = 4, absent: Sequence[str] = ()) -> LoadedPlan:
    batches = tuple(double(tiny_batch(count, seed=seed + i, absent=absent)) for i in range(2))
    return LoadedPlan(batches, tuple(Episode(tasks, 0, 1) for tasks in EPISODES))


def learner_of(chain: str = "sum", seed: int = 0) -> Learner:
    return tiny_learner(CHAINS[chain](), seed=seed).double()


def gradients_of(optimizer: MTML, learner: Learner, plan: LoadedPlan) -> dict[str, Tensor | None]:
    """What the outer step is made of."""
    found: dict[str, Tensor | None] = {}

    def look(*_: Any) -> None:
        for name, p in learner.named_parameters():
            found[name] = None if p.grad is None else p.grad.clone()

    handle = optimizer._update._torch.register_step_pre_hook(look)
    report = optimizer.step(learner, plan)
    handle.remove()
    assert report.skipped is None
    return found


# By hand


def losses_by_hand(
    learner: Learner, at: Mapping[str, Tensor], batch: Batch, tasks: Sequence[str]
) -> dict[str, Tensor]:
    buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    raw = torch.func.functional_call(learner, {**at, **buffers}, (batch, tasks)).raw
    names = dict(learner.named_parameters())
    result = {}
    for task, loss in raw.items():
        (s,) = [n for n in names if f"log_variance.task_{task}" in n] or [None]
        result[task] = loss if s is None else torch.exp(-at[s]) * loss + at[s]
    return result


def rows_by_hand(
    learner: Learner,
    plan: LoadedPlan,
    *,
    second_order: bool,
    steps: int = 1,
    inner: Callable[[str], bool] = lambda name: True,
) -> dict[str, dict[str, Tensor | None]]:
    """Per task the gradient of its mean query loss, by parameter."""
    theta = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
    rows: dict[str, dict[str, Tensor | None]] = {task: dict.fromkeys(theta) for task in TASKS}
    for episode in plan.episodes:
        assert episode.query is not None
        at = dict(theta)
        for _ in range(steps):
            losses = losses_by_hand(learner, at, plan.batches[episode.support], episode.tasks)
            names = [name for name in at if inner(name)]
            found = torch.autograd.grad(
                sum(losses.values()), [at[n] for n in names], create_graph=True, allow_unused=True
            )
            for name, g in zip(names, found, strict=True):
                at[name] = at[name] if g is None else at[name] - INNER_LR * g
        if not second_order:  # the gradient at the adapted point, as it stands
            at = {name: value.detach().requires_grad_() for name, value in at.items()}
        losses = losses_by_hand(learner, at, plan.batches[episode.query], episode.tasks)
        start = theta if second_order else at
        for task, loss in losses.items():
            found = torch.autograd.grad(
                loss, [*start.values()], retain_graph=True, allow_unused=True
            )
            for name, g in zip(start, found, strict=True):
                if g is not None:
                    seen = rows[task][name]
                    mean = g / len(plan.episodes)
                    rows[task][name] = mean if seen is None else seen + mean
    return rows


def balanced_by_hand(
    learner: Learner, rows: Mapping[str, Mapping[str, Tensor | None]]
) -> dict[str, Tensor | None]:
    named = dict(learner.named_parameters())
    ids = {id(p): name for name, p in named.items()}
    shared = [ids[id(p)] for p in learner.model.shared_parameters()]
    own = {ids[id(p)] for task in TASKS for p in learner.model.task_parameters(task)}

    def flat(task: str) -> Tensor:
        parts = [rows[task][n] for n in shared]
        zeros = [torch.zeros_like(named[n]) for n in shared]
        whole = [z if g is None else g for g, z in zip(parts, zeros, strict=True)]
        return torch.cat([g.flatten() for g in whole]).detach()

    matrix = torch.stack([flat(task) for task in TASKS])
    finisher = learner.balancing.finisher
    weights, heads, direction = torch.ones(3), torch.ones(3), None
    if isinstance(finisher, GramianBalancer):
        weights, heads = finisher.weights(matrix @ matrix.T)
    elif isinstance(finisher, GradientBalancer):
        direction = finisher.combine(matrix)
    result: dict[str, Tensor | None] = {}
    for name in named:
        scale = weights if name in shared else heads if name in own else torch.ones(3)
        found = [(w, rows[t][name]) for w, t in zip(scale, TASKS, strict=True)]
        terms = [w * g for w, g in found if g is not None]
        result[name] = torch.stack(terms).sum(0) if terms else None
    if direction is not None:
        sizes = [named[n].numel() for n in shared]
        for name, part in zip(shared, direction.split(sizes), strict=True):
            result[name] = part.view_as(named[name])
    return result


def assert_close(found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, wanted in expected.items():
        got = found[name]
        assert (got is None) == (wanted is None), name
        if got is not None and wanted is not None:
            assert float((got - wanted).abs().max()) <= 1e-10 * scale, name


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("second_order", [False, True])
def test_the_outer_gradient_is_that_of_maml(chain: str, steps: int, second_order: bool) -> None:
    learner, plan = learner_of(chain), plan_of()
    rows = rows_by_hand(learner, plan, second_order=second_order, steps=steps)
    expected = balanced_by_hand(learner, rows)
    optimizer = MTML(learner, inner_lr=INNER_LR, inner_steps=steps, second_order=second_order)
    assert_close(gradients_of(optimizer, learner, plan), expected)


def test_the_orders_differ() -> None:
    """Otherwise the tests above compare a thing with itself."""
    found = []
    for second_order in (False, True):
        learner = learner_of()
        optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order)
        found.append(gradients_of(optimizer, learner, plan_of()))
    with pytest.raises(AssertionError):
        assert_close(*found)


def is_head(name: str) -> bool:
    return name.startswith(("model.heads", "model.backbone.branches"))


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(
    ("scope", "inner"),
    [("heads", is_head), ("heads+norm", lambda name: is_head(name) or ".trunk.1." in name)],
)
def test_scopes_of_the_inner_step(
    scope: Any, inner: Callable[[str], bool], second_order: bool
) -> None:
    learner, plan = learner_of("both"), plan_of()
    rows = rows_by_hand(learner, plan, second_order=second_order, inner=inner)
    optimizer = MTML(learner, inner_lr=INNER_LR, inner_scope=scope, second_order=second_order)
    assert_close(gradients_of(optimizer, learner, plan), balanced_by_hand(learner, rows))


def test_a_task_that_some_episodes_lack_labels_of() -> None:
    """Labelled in the support batch only, it is learnt from in inner steps only."""
    for second_order in (False, True):
        learner, plan = learner_of("uncertainty"), plan_of()
        poor = double(tiny_batch(4, seed=1, absent=("depth",)))
        plan = attrs.evolve(plan, batches=(plan.batches[0], poor))
        rows = rows_by_hand(learner, plan, second_order=second_order)
        optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order)
        found = gradients_of(optimizer, learner, plan)
        assert_close(found, balanced_by_hand(learner, rows))
        head = found["model.heads.task_depth.output.weight"]
        assert (head is not None) == second_order


@pytest.mark.parametrize("second_order", [False, True])
def test_steps_are_adamw(second_order: bool) -> None:
    """Several steps in a row, with decay: the released defaults in all but the numbers."""
    learner, other = learner_of("both"), learner_of("both")
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-7}
    optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order, **settings)
    s = [p for name, p in other.named_parameters() if "log_variance" in name]
    rest = [p for name, p in other.named_parameters() if "log_variance" not in name]
    groups = [{"params": rest}, {"params": s, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, **settings)
    for number in range(3):
        plan = plan_of(seed=10 * number)
        rows = rows_by_hand(other, plan, second_order=second_order)
        for name, g in balanced_by_hand(other, rows).items():
            other.get_parameter(name).grad = g
        reference.step()
        assert optimizer.step(learner, plan).skipped is None
    for name, p in learner.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(name), rtol=1e-6, atol=1e-9)


def test_balancing_on_the_last_layer() -> None:
    """The trunk of the tests has no such layer; its convolution stands in for one."""
    learners = []
    for balancer in (OfLosses(), Normalised()):
        learner = tiny_learner([balancer]).double()
        trunk = [*learner.model.backbone.trunk[0].parameters()]
        learner.model.backbone.last_shared_parameters = lambda p=trunk: p
        learners.append(learner)
    learner = learners[0]
    rows = rows_by_hand(learner, plan_of(), second_order=True)
    name = "model.backbone.trunk.0.weight"
    matrix = torch.stack([rows[task][name].flatten() for task in TASKS]).detach()
    weights = learner.balancing.finisher.weights(matrix @ matrix.T)[0]
    found = gradients_of(MTML(learner, inner_lr=INNER_LR, second_order=True), learner, plan_of())
    for name in ("model.backbone.trunk.0.weight", "model.backbone.trunk.1.bias"):
        expected = sum(w * rows[t][name] for w, t in zip(weights, TASKS, strict=True))
        torch.testing.assert_close(found[name], expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("second_order", [False, True])
def test_weights_between_two_updates(second_order: bool) -> None:
    """A balancer that is asked every other step: its last weights, those of heads too."""
    learner, other = (tiny_learner(CHAINS["both"](), update_every=2).double() for _ in range(2))
    optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order)
    learner.context.step = 0
    weights = optimizer.step(learner, plan_of()).balancing.weights
    assert len(set(weights.values())) == 3
    other.load_state_dict(state_of(learner))
    rows = rows_by_hand(other, plan_of(seed=5), second_order=second_order)
    learner.context.step = 1
    found = gradients_of(optimizer, learner, plan_of(seed=5))
    names = {id(p): name for name, p in other.named_parameters()}
    own = [names[id(p)] for task in TASKS for p in other.model.task_parameters(task)]
    shared = [names[id(p)] for p in other.model.shared_parameters()]
    heads = dict(zip(TASKS, (1.0, 2.0, 3.0), strict=True))
    expected: dict[str, Tensor | None] = {}
    for name in found:
        scale = weights if name in shared else heads if name in own else dict.fromkeys(TASKS, 1.0)
        terms = [scale[t] * g for t in TASKS if (g := rows[t][name]) is not None]
        expected[name] = torch.stack(terms).sum(0) if terms else None
    assert_close(found, expected)


# Splitting batches


@pytest.mark.parametrize("normalisation", ["valid", "sample"])
@pytest.mark.parametrize("second_order", [False, True])
def test_a_split_batch_gives_the_step_of_the_whole(normalisation: Any, second_order: bool) -> None:
    """Without batch norm's statistics of the batch, which no splitting can keep."""
    results = []
    for pieces in ([slice(0, 6)], [slice(0, 1), slice(1, 6)]):
        learner = tiny_learner(CHAINS["both"](), normalisation=normalisation).double().eval()
        whole = plan_of(count=6).batches
        batches = tuple(cut(batch, piece) for piece in pieces for batch in whole)
        episodes = tuple(
            Episode(tasks, 2 * i, 2 * i + 1) for i in range(len(pieces)) for tasks in EPISODES
        )
        optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order)
        report = optimizer.step(learner, LoadedPlan(batches, episodes))
        results.append((report.losses, dict(learner.named_parameters())))
    (losses, parameters), (other_losses, others) = results
    assert losses == pytest.approx(other_losses, rel=1e-12)
    for name, p in parameters.items():
        torch.testing.assert_close(p, others[name], rtol=1e-6, atol=1e-9)


def cut(batch: Batch, piece: slice) -> Batch:
    valid = {task: v[piece] for task, v in batch.valid.items()}
    return attrs.evolve(
        batch,
        inputs=batch.inputs[piece],
        targets={task: t[piece] for task, t in batch.targets.items()},
        valid=valid,
        count={task: int(v.sum()) for task, v in valid.items()},
        view=batch.view[piece],
        keys=batch.keys[piece],
        meta=batch.meta[piece],
    )


def test_the_loss_scale_cancels_out() -> None:
    for second_order in (False, True):
        results = []
        for factor in (1.0, 1024.0):
            learner = learner_of("both")
            optimizer = MTML(learner, inner_lr=INNER_LR, second_order=second_order)
            optimizer._update._scale.factor = factor
            results.append(gradients_of(optimizer, learner, plan_of()))
        assert_close(*results)


# What must not change


def test_an_absent_task_leaves_no_trace() -> None:
    """Neither in its head and s nor in their moments, also where it had them before."""
    for settings in ({}, {"second_order": True}, {"restore": False}):
        learner = learner_of("both")
        optimizer = MTML(learner, weight_decay=0.5, inner_lr=INNER_LR, **settings)
        for number in range(2):
            optimizer.step(learner, plan_of(seed=number))
        own = [*learner.model.task_parameters("depth")]
        own += [p for n, p in learner.named_parameters() if "log_variance.task_depth" in n]
        moments = optimizer._update._torch.state
        before = copy.deepcopy([(p.detach(), moments[p]) for p in own])
        assert all(moments[p]["exp_avg"].abs().max() > 0 for p in own)
        buffers = [b.clone() for n, b in learner.named_buffers() if "task_depth" in n]
        lacking = attrs.evolve(
            plan_of(seed=7), episodes=(Episode(("segmentation", "normals"), 0, 1),)
        )
        unlabelled = plan_of(seed=8, absent=("depth",))
        for plan in (lacking, unlabelled):
            report = optimizer.step(learner, plan)
            assert report.skipped is None
            assert set(report.losses) == {"segmentation", "normals"}
        assert same(before, [(p.detach(), moments[p]) for p in own])
        assert same(buffers, [b for n, b in learner.named_buffers() if "task_depth" in n])


def test_inner_passes_leave_running_statistics_alone() -> None:
    """The trunk stays where it is, so that each of the four query passes sees the same mean."""
    for settings in ({}, {"second_order": True}, {"restore": False}, {"inner_steps": 3}):
        learner, plan = learner_of(), plan_of()
        shifted = attrs.evolve(plan.batches[0], inputs=plan.batches[0].inputs + 5)
        plan = attrs.evolve(plan, batches=(shifted, plan.batches[1]))
        with torch.no_grad():
            mean = learner.model.backbone.trunk[0](plan.batches[1].inputs).mean((0, 2, 3))
        optimizer = MTML(learner, inner_lr=INNER_LR, inner_scope="heads", **settings)
        optimizer.step(learner, plan)
        norm = learner.model.backbone.trunk[1]
        torch.testing.assert_close(norm.running_mean, mean * (1 - 0.9**4), rtol=1e-9, atol=1e-12)
        assert int(norm.num_batches_tracked) == 4


class NoSlope(Loss):
    """Zero, with a gradient that is not a number, where a target is above 50."""

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        if bool((target > 50).any()):
            return (prediction - prediction.detach()).square().sum(1).sqrt()
        return (prediction - target)[:, 0].abs()


@pytest.mark.parametrize("settings", [{}, {"second_order": True}, {"restore": False}])
@pytest.mark.parametrize("what", ["loss", "gradient", "step"])
def test_an_inner_step_that_is_not_finite_leaves_no_trace(
    what: str, settings: dict[str, Any]
) -> None:
    learner = learner_of("both")
    learner.losses["task_depth"] = NoSlope()
    optimizer = MTML(learner, inner_lr=INNER_LR, weight_decay=0.1, **settings)
    assert optimizer.step(learner, plan_of()).skipped is None
    support, query = plan_of(seed=3).batches
    if what == "loss":
        support = attrs.evolve(support, inputs=support.inputs * float("inf"))
    elif what == "gradient":
        targets = {**support.targets, "depth": support.targets["depth"] + 100}
        support = attrs.evolve(support, targets=targets)
    else:
        optimizer._inner_lr = 1e200
    state = {"learner": state_of(learner), "optimizer": copy.deepcopy(optimizer.state_dict())}
    report = optimizer.step(learner, attrs.evolve(plan_of(), batches=(support, query)))
    reasons = {"loss": "in an inner step", "gradient": "the gradient of an inner step is not",
               "step": "the loss of"}  # fmt: skip
    assert report.skipped is not None
    assert reasons[what] in report.skipped
    after = {"learner": state_of(learner), "optimizer": optimizer.state_dict()}
    assert not changes(state, after)
    optimizer._inner_lr = INNER_LR
    assert optimizer.step(learner, plan_of()).skipped is None


# As released


def test_without_restoring() -> None:
    """Inner steps one after another; all outer gradients at their end point, where AdamW starts."""
    learner, other, plan = learner_of("both"), learner_of("both"), plan_of()
    support = plan.batches[0]
    names = [name for name, _ in other.named_parameters()]
    for episode in plan.episodes:
        at = {name: p.detach().requires_grad_() for name, p in other.named_parameters()}
        losses = losses_by_hand(other, at, support, episode.tasks)
        found = torch.autograd.grad(sum(losses.values()), [*at.values()], allow_unused=True)
        with torch.no_grad():
            for name, g in zip(names, found, strict=True):
                if g is not None:
                    other.get_parameter(name).sub_(INNER_LR * g)
    ended = state_of(other)
    rows = rows_by_hand(other, plan, second_order=False, steps=0)
    expected = balanced_by_hand(other, rows)
    optimizer = MTML(learner, lr=1e-12, weight_decay=0.0, inner_lr=INNER_LR, restore=False)
    assert_close(gradients_of(optimizer, learner, plan), expected)
    for name, p in learner.named_parameters():
        torch.testing.assert_close(p.detach(), ended[name], rtol=0, atol=1e-11)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_lr": 0.0}, r"optimizer\.inner_lr"),
        ({"inner_lr": float("nan")}, r"optimizer\.inner_lr"),
        ({"inner_steps": 0}, r"optimizer\.inner_steps"),
        ({"second_order": True, "restore": False}, "choose one of the two"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MTML(learner_of(), **settings)


class OfFeatures(Normalised):
    scope = "features"


def test_features_do_not_see_the_second_order() -> None:
    learner = tiny_learner([OfFeatures()]).double()
    with pytest.raises(UsageError, match="past its features"):
        MTML(learner, second_order=True)
    report = MTML(learner, inner_lr=INNER_LR).step(learner, plan_of())
    assert report.skipped is None
    assert set(report.balancing.weights) == set(TASKS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_backbone_has_no_second_order() -> None:
    learner = learner_of()
    learner.model.backbone.compile()
    with pytest.raises(UsageError, match=r"training\.compile=false"):
        MTML(learner, second_order=True)


def test_an_episode_needs_a_query() -> None:
    learner = learner_of()
    plan = LoadedPlan(plan_of().batches, (Episode(TASKS, 0),))
    before = state_of(learner)
    with pytest.raises(UsageError, match=r"episodes\.name=task-powerset"):
        MTML(learner).step(learner, plan)
    assert not changes(before, state_of(learner))
