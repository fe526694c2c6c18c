"""Balancing at the maps that heads read: exact on any backbone, whatever the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, Balancing, GradientBalancer, GramianBalancer
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import Backbone, Head, MultiTaskModel, Neck, NeckPerTask, Necks, SharedNeck
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner

NAMES = [task.name for task in TINY_TASKS]
SHARED = dict(zip(NAMES, (0.0, 2.0, -0.5), strict=True))
HEADS = dict(zip(NAMES, (1.5, 0.25, 3.0), strict=True))


def conv(inner: int, outer: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1), nn.Tanh())


class Pyramid(Backbone):
    """Two shared maps of which the second comes from the first, and both are read."""

    out_channels, strides = (6, 4), (1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 6)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        first = self.first(inputs)
        return Features(shared=(self.second(first), first))


class Attending(Backbone):
    """A map per task, from shared ones and through parameters of the task's own."""

    out_channels, strides = (4, 4), (1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 4)
        self.masks = nn.ModuleDict({task.key: conv(4, 4) for task in TINY_TASKS})

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        first = self.first(inputs)
        second = self.second(first)
        keys = {task.name: task.key for task in TINY_TASKS}
        own = {name: (self.masks[keys[name]](first) * second,) for name in tasks}
        return Features(shared=(second,), per_task=own)

    def task_parameters(self, task: str):
        (key,) = (t.key for t in TINY_TASKS if t.name == task)
        return self.masks[key].parameters()


class Stitched(Backbone):
    """A trunk per task; each one's map holds something of every other's."""

    out_channels, strides = (4,), (1,)

    def __init__(self) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict({task.key: conv(3, 4) for task in TINY_TASKS})
        self.mix = nn.Parameter(torch.rand(len(TINY_TASKS), len(TINY_TASKS)))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        maps = torch.stack([self.trunks[task.key](inputs) for task in TINY_TASKS])
        mixed = torch.einsum("ij,jbchw->ibchw", self.mix, maps)
        places = {task.name: place for place, task in enumerate(TINY_TASKS)}
        return Features(per_task={name: (mixed[places[name]],) for name in tasks})


class Tokens(Backbone):
    """Attention over all pixels, as in a transformer; its one map is also a task's own."""

    out_channels, strides = (4, 4), (1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        embedded = self.embed(inputs)
        tokens = embedded.flatten(2).transpose(1, 2)
        attended = self.attention(tokens, tokens, tokens)[0].transpose(1, 2).view_as(embedded)
        return Features(shared=(attended,), per_task=dict.fromkeys(tasks, (attended,)))


class Reading(Head):
    """Reads every map that it is given."""

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__()
        self.read = nn.Conv2d(sum(features.channels), task.channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.read(torch.cat(list(features), 1))

    def reset_parameters(self) -> None:
        self.read.reset_parameters()


class Supervised(Backbone):
    """Predictions on the way, by parameters of a task's own, and a term beside all tasks."""

    out_channels, strides = (4,), (1,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 4)
        self.early = nn.ModuleDict({t.key: nn.Conv2d(4, t.channels, 1) for t in TINY_TASKS})

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        first = self.first(inputs)
        second = self.second(first)
        keys = {task.name: task.key for task in TINY_TASKS}
        early = {name: (EarlyPrediction(self.early[keys[name]](first), 0.5),) for name in tasks}
        terms = {"size": first.square().mean()}
        return Features(shared=(second,), early=early, terms=terms)  # no cut: early ones pass it

    def task_parameters(self, task: str):
        (key,) = (t.key for t in TINY_TASKS if t.name == task)
        return self.early[key].parameters()


class Mixing(Neck):
    """Two maps, of which the second comes from the first, from all maps of a backbone."""

    out_channels, strides = (5, 3), (1, 1)

    def __init__(self, features: FeatureInfo) -> None:
        super().__init__()
        self.first, self.second = conv(sum(features.channels), 5), conv(5, 3)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first = self.first(torch.cat(list(features), 1))
        return first, self.second(first)


def one_for_all(info: FeatureInfo) -> Necks:
    return SharedNeck(Mixing(info))


def one_for_each(info: FeatureInfo) -> Necks:
    return NeckPerTask(TINY_TASKS, lambda: Mixing(info))


BACKBONES = [Pyramid, Attending, Stitched, Tokens, Supervised]


class Chosen(GramianBalancer):
    """Weights that were chosen beforehand, of rows and of heads."""

    scope = "features"

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        present = context.present
        return torch.tensor(
            [[SHARED[t] for t in present], [HEADS[t] for t in present]], dtype=torch.float64
        )


class Watching(Chosen):
    """Keeps the Gramian that it saw."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        self.seen = gramian
        return super().weights(gramian, context)


class Sum(GradientBalancer):
    scope = "features"

    def __init__(self, granularity: str = "whole") -> None:
        super().__init__()
        self.granularity = granularity

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.sum(0)


class Between(CrossTaskLoss):
    """A term of features and predictions alike."""

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Sequence[str]:
        return tasks

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        maps = [x for task in predictions for x in features.of(task)]
        values = [x.square().mean() for x in (*maps, *predictions.values())]
        return {"between": torch.stack(values).sum()}


def learner_of(
    backbone: type[Backbone],
    balancer: nn.Module,
    *,
    cross: bool = False,
    necks: Callable[[FeatureInfo], Necks] | None = None,
) -> Learner:
    torch.manual_seed(0)
    made = backbone()
    info = FeatureInfo.of(made)
    neck = necks(info) if necks else None
    info = neck.info if neck else info
    heads = {t.name: Reading(t, info) for t in TINY_TASKS}
    model = MultiTaskModel(TINY_TASKS, made, heads, neck)
    return Learner(
        model,
        {task.name: tiny_learner().losses[task.key] for task in TINY_TASKS},
        [Between()] if cross else [],
        Balancing([balancer]),
    ).double()


def double(batch: Batch) -> Batch:
    targets = {t: x.double() if x.is_floating_point() else x for t, x in batch.targets.items()}
    return attrs.evolve(batch, inputs=batch.inputs.double(), targets=targets)


def gradients_of(learner: Learner, *batches: Batch) -> dict[str, Tensor]:
    """What a step writes to `.grad`, seen by an optimizer that does nothing with it."""
    seen: dict[str, Tensor] = {}

    class Watching(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            for name, p in learner.named_parameters():
                if p.grad is not None:
                    seen[name] = p.grad.clone()

    optimizer = GradientDescent(
        learner, lambda groups: Watching(groups, lr=0.1), Schedule(), clip=None
    )
    tasks = tuple(learner.model.tasks)
    episodes = tuple(Episode(tasks, place) for place in range(len(batches)))
    assert optimizer.step(learner, LoadedPlan(batches, episodes)).skipped is None
    return seen


def expected(learner: Learner, batch: Batch, shared: Mapping[str, float]) -> dict[str, Tensor]:
    """The same by autograd: each loss differentiated through everything."""
    losses = learner(batch, tuple(learner.model.tasks))
    own = {id(p): task for task in NAMES for p in learner.model.task_parameters(task)}
    sums = {name: torch.zeros_like(p) for name, p in learner.named_parameters()}
    terms = [(task, loss) for task, loss in losses.total.items()]
    terms += [("", term) for term in losses.cross.values()]
    for task, loss in terms:
        found = torch.autograd.grad(
            loss, [*learner.parameters()], retain_graph=True, allow_unused=True
        )
        for (name, p), gradient in zip(learner.named_parameters(), found, strict=True):
            if gradient is not None:
                weight = 1.0 if not task else HEADS[task] if id(p) in own else shared[task]
                sums[name] += weight * gradient
    return sums


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for name, gradient in other.items():
        seen = one.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(seen, gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("cross", [False, True], ids=["tasks", "and-a-term"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_are_those_of_autograd(backbone: type[Backbone], cross: bool) -> None:
    learner = learner_of(backbone, Chosen(), cross=cross)
    batch = double(tiny_batch())
    found = gradients_of(learner, batch)
    assert_close(found, expected(learner, batch, SHARED))


class OneMap(Backbone):
    """A single map, which the backbone may name as its cut."""

    out_channels, strides, says_so = (4,), (1,), True

    def __init__(self) -> None:
        super().__init__()
        self.trunk = conv(3, 4)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        x = self.trunk(inputs)
        return Features(shared=(x,), cut=(x,) if self.says_so else ())


@pytest.mark.parametrize("necks", [one_for_all, one_for_each])
@pytest.mark.parametrize("backbone", [*BACKBONES, OneMap])
def test_gradients_through_necks_are_those_of_autograd(
    backbone: type[Backbone], necks: Callable[[FeatureInfo], Necks]
) -> None:
    learner = learner_of(backbone, Chosen(), cross=True, necks=necks)
    batch = double(tiny_batch())
    assert_close(gradients_of(learner, batch), expected(learner, batch, SHARED))


def test_with_a_neck_for_each_tasks_are_compared_at_the_maps_of_the_backbone() -> None:
    balancer = Watching()
    learner = learner_of(Supervised, balancer, necks=one_for_each)
    batch = double(tiny_batch())
    gradients_of(learner, batch)
    features = learner.model.backbone(batch.inputs, NAMES)
    maps = [*features.shared, *(e.prediction for t in NAMES for e in features.early[t])]
    decoded = learner.model.neck(features, NAMES)
    predictions = learner.model.predict(decoded, NAMES, batch.inputs.shape[2:])
    losses = learner._supervised(batch, NAMES, decoded, predictions).total
    rows = []
    for task in NAMES:
        found = torch.autograd.grad(
            losses[task], maps, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    gramian = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(balancer.seen, gramian)
    assert float(gramian[0, 1].abs()) > 0


@pytest.mark.parametrize("granularity", ["whole", "parameter", "element"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_can_be_combined_there(
    backbone: type[Backbone], granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(backbone, Sum(granularity), cross=True)
    batch = double(tiny_batch())
    ones = dict.fromkeys(NAMES, 1.0)
    monkeypatch.setitem(globals(), "HEADS", ones)
    assert_close(gradients_of(learner, batch), expected(learner, batch, ones))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_micro_batches_add_up(backbone: type[Backbone]) -> None:
    """The weights do not depend on the Gramian here, so that parts are exactly the whole."""
    learner = learner_of(backbone, Chosen())
    first = double(tiny_batch())
    # The same masks: each part counts one half.
    batches = [first, attrs.evolve(first, inputs=first.inputs.flip(3) / 2)]
    found = gradients_of(learner, *batches)
    parts = [expected(learner, batch, SHARED) for batch in batches]
    halves = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert_close(found, halves)


def test_on_a_single_map_a_stated_cut_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for says_so in (True, False):
        monkeypatch.setattr(OneMap, "says_so", says_so)
        balancer = Watching()
        gradients = gradients_of(learner_of(OneMap, balancer), double(tiny_batch()))
        found.append((balancer.seen, gradients))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    assert_close(found[0][1], found[1][1])


def test_rows_of_a_tasks_own_map_are_its_alone() -> None:
    balancer = Watching()
    gradients_of(learner_of(Stitched, balancer), double(tiny_batch()))
    off = balancer.seen - torch.diag(balancer.seen.diagonal())
    assert float(off.abs().max()) == 0 and bool((balancer.seen.diagonal() > 0).all())


def test_a_combination_says_nothing_of_earlier_layers() -> None:
    class Last(Sum):
        scope = "last_shared"

    with pytest.raises(UsageError, match="'shared' or 'features'"):
        Balancing([Last()])
