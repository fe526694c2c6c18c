"""Deep supervision: early predictions in the task's row, terms beside it, and who hears of steps.

Two backbones stand for the literature, each at its smallest: PAD-Net, which distils features that
initial predictions supervise, and MTI-Net, which predicts at every scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.balancing import BalancerContext, GramianBalancer, LossBalancer
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss, reduce_loss
from mtlcore.models import Backbone, StepContext
from mtlcore.optimizers import StepReport
from mtlcore.standard.optimizers import sgd
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, tiny_batch, tiny_learner

NAMES = tuple(task.name for task in TINY_TASKS)


class PADNet(Backbone):
    """Initial predictions per task, and messages between the features that they are made of.

    Xu et al. 2018 in the form of Vandenhende et al.: o_i = F_i + sum_j conv(F_j) sigmoid(conv'
    (F_j)), and initial predictions count as much as final ones.
    """

    out_channels, strides, input_multiple = (5,), (2,), 2

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = {task.name: task.key for task in tasks}
        keys = [*self.tasks.values()]
        self.trunk = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.branches = nn.ModuleDict({key: nn.Conv2d(6, 5, 1) for key in keys})
        self.initial = nn.ModuleDict({t.key: nn.Conv2d(5, t.channels, 1) for t in tasks})
        self.messages = nn.ModuleDict(
            {
                to: nn.ModuleDict(
                    {key: nn.Conv2d(5, 10, 3, padding=1) for key in keys if key != to}
                )
                for to in keys
            }
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        shared = self.trunk(inputs).tanh()
        before = {key: self.branches[key](shared).tanh() for key in self.tasks.values()}
        after = {task: (self._distilled(self.tasks[task], before),) for task in tasks}
        if not self.training:
            return Features(per_task=after)
        early = {
            task: [EarlyPrediction(self.initial[key](before[key]))]
            for task in tasks
            for key in [self.tasks[task]]
        }
        return Features(per_task=after, early=early)

    def _distilled(self, to: str, before: dict[str, Tensor]) -> Tensor:
        total = before[to]
        for key, message in self.messages[to].items():
            value, gate = message(before[key]).chunk(2, dim=1)
            total = total + value * gate.sigmoid()
        return total

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        key = self.tasks[task]
        yield from self.initial[key].parameters()
        yield from self.messages[key].parameters()
        if len(self.tasks) == 1:
            yield from self.branches[key].parameters()


class MTINet(Backbone):
    """Two scales, each with predictions of its own that count half and a quarter, and a term."""

    out_channels, strides, input_multiple = (4, 4), (4, 2), 4
    weights = (0.25, 0.5)

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = {task.name: task.key for task in tasks}
        self.fine = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.early = nn.ModuleDict(
            {t.key: nn.ModuleList([nn.Conv2d(4, t.channels, 1) for _ in self.strides])
             for t in tasks}
        )  # fmt: skip

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        fine = self.fine(inputs).tanh()
        maps = (self.coarse(fine).tanh(), fine)
        if not self.training:
            return Features(shared=maps, cut=maps)
        early = {
            task: [
                EarlyPrediction(predict(x), weight)
                for x, predict, weight in zip(
                    maps, self.early[self.tasks[task]], self.weights, strict=True
                )
            ]
            for task in tasks
        }
        terms = {"sparsity": maps[0].abs().mean()}
        return Features(shared=maps, early=early, terms=terms)

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        return self.early[self.tasks[task]].parameters()


BACKBONES = [PADNet, MTINet]


class TestPADNet(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return PADNet(tasks)


class TestMTINet(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return MTINet(tasks)


class Seen(GramianBalancer):
    """The plain sum; remembers the Gramians it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        self.seen.append(gramian)
        return torch.ones(len(gramian), dtype=torch.float64)


class Told(LossBalancer):
    """Remembers the losses that it transforms and those that it is told of afterwards."""

    needs_maps = True

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict[str, float]] = []
        self.maps: list[dict[str, Tensor]] = []
        self.after: list[dict[str, float]] = []

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        self.before.append({task: float(loss.detach()) for task, loss in losses.items()})
        self.maps.append({task: values.detach() for task, values in context.maps.items()})
        return losses

    def after_step(self, context: BalancerContext) -> None:
        self.after.append(dict(context.losses))


def double(batch: Batch) -> Batch:
    targets = {n: t.double() if t.is_floating_point() else t for n, t in batch.targets.items()}
    return attrs.evolve(batch, inputs=batch.inputs.double(), targets=targets)


def losses_by_hand(learner: Learner, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Final plus weighted early losses, with nothing but torch and the tasks' losses."""
    model = learner.model
    height, width = batch.inputs.shape[2:]
    m = model.backbone.input_multiple
    padded = (height + -height % m, width + -width % m)
    inputs = F.pad(batch.inputs, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")
    features = model.backbone(inputs, tasks)
    result = {}
    for task in tasks:
        loss = learner.losses[model.tasks[task].key]
        pairs = [(1.0, model.head(task)(features.of(task)))]
        pairs += [
            (one.weight, F.interpolate(one.prediction, padded, mode="bilinear"))
            for one in features.early[task]
        ]
        result[task] = sum(
            weight
            * reduce_loss(
                loss, values[..., :height, :width], batch.targets[task], batch.valid[task]
            )[0]
            for weight, values in pairs
        )
    return result


def step(learner: Learner, optimizer, *batches: Batch) -> StepReport:
    episodes = tuple(Episode(learner.tasks, support=i) for i in range(len(batches)))
    return optimizer.step(learner, LoadedPlan(batches, episodes))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])  # one that is padded
def test_the_row_of_a_task_is_that_of_its_whole_loss(backbone, size) -> None:
    learner = tiny_learner([Seen()], backbone=backbone).double()
    batch = double(tiny_batch(4, size=size))
    found = learner(batch, NAMES)
    expected = losses_by_hand(learner, batch, NAMES)
    shared = learner.model.shared_parameters()
    rows = []
    for task in NAMES:
        torch.testing.assert_close(found.balanced[task], expected[task])
        torch.testing.assert_close(found.total[task], expected[task])
        assert float(found.early[task].detach()) > 0
        gradients = torch.autograd.grad(
            expected[task], shared, retain_graph=True, allow_unused=True
        )
        rows.append(
            torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                       for p, g in zip(shared, gradients, strict=True)])
        )  # fmt: skip
    step(learner, sgd(learner, lr=0.1), batch)
    (gramian,) = learner.balancing.finisher.seen
    expected_gramian = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(gramian, expected_gramian)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("normalisation", ["valid", "sample"])
def test_parts_of_a_batch_make_the_step_of_the_whole(backbone, normalisation) -> None:
    whole = double(tiny_batch(4))
    parts = [
        attrs.evolve(
            whole,
            inputs=whole.inputs[rows],
            targets={n: t[rows] for n, t in whole.targets.items()},
            valid={n: v[rows] for n, v in whole.valid.items()},
            count={n: int(v[rows].sum()) for n, v in whole.valid.items()},
            labelled={n: known[rows] for n, known in whole.labelled.items()},
            view=whole.view[rows],
            keys=whole.keys[rows],
            meta=whole.meta[rows],
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    states, reports, told = [], [], []
    for batches in ([whole], parts):
        listening = Told()
        listening.needs_maps = False
        learner = tiny_learner(
            [listening, Seen()], backbone=backbone, normalisation=normalisation
        ).double()
        reports.append(step(learner, sgd(learner, lr=0.1), *batches))
        states.append(dict(learner.model.state_dict()))
        told.append(listening.after)
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        torch.testing.assert_close(one, other)
    for name in ("losses", "early", "cross"):
        assert getattr(reports[0], name) == pytest.approx(getattr(reports[1], name))
    assert told[0][0] == pytest.approx(told[1][0])


def test_records_hold_the_final_loss_and_balancers_see_the_whole_one() -> None:
    told = Told()
    learner = tiny_learner([told], backbone=MTINet)
    batch = tiny_batch(4)
    found = learner(batch, NAMES)
    raw, early, maps = found.raw, found.early, found.maps
    told.before.clear()
    report = step(learner, sgd(learner, lr=0.1), batch)
    for task in NAMES:
        assert report.losses[task] == pytest.approx(float(raw[task].detach()))
        assert report.early[task] == pytest.approx(float(early[task].detach()))
        whole = report.losses[task] + report.early[task]
        assert told.before[0][task] == pytest.approx(whole)
        assert told.after[0][task] == pytest.approx(whole)
        valid = batch.valid[task]
        mean = (maps[task] * valid).sum() / valid.sum()
        assert float(mean.detach()) == pytest.approx(whole, rel=1e-5)
        (share,) = torch.autograd.grad(found.total[task], maps[task], retain_graph=True)
        torch.testing.assert_close(share, valid / valid.sum())
    assert set(report.cross) == {"sparsity"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_absent_tasks_leave_no_trace(backbone) -> None:
    learner = tiny_learner(backbone=backbone)
    optimizer = sgd(learner, lr=0.1, momentum=0.9, weight_decay=0.1)
    step(learner, optimizer, tiny_batch(4))
    own = list(learner.model.task_parameters("depth"))
    before = [p.detach().clone() for p in own]
    report = step(learner, optimizer, tiny_batch(4, seed=1, absent=["depth"]))
    assert set(report.losses) == set(report.early) == {"segmentation", "normals"}
    assert all(map(torch.equal, before, own))


class Uses(CrossTaskLoss):
    """Asks for a task, labelled or not."""

    def needs(self, batch, tasks):
        return ["depth"]

    def forward(self, batch, features, predictions):
        return {"used": predictions["depth"].square().mean()}


def test_a_task_that_only_a_cross_task_loss_uses_has_no_early_loss() -> None:
    learner = tiny_learner(backbone=PADNet, cross_task=[Uses()])
    found = learner(tiny_batch(4, absent=["depth"]), NAMES)
    assert set(found.early) == {"segmentation", "normals"}
    (*_, initial) = learner.model.backbone.initial["task_depth"].parameters()
    total = torch.stack([*found.balanced.values(), *found.cross.values()]).sum()
    assert torch.autograd.grad(total, [initial], allow_unused=True) == (None,)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_evaluation_and_prediction_do_not_run_them(backbone) -> None:
    learner = tiny_learner(backbone=backbone).eval()
    part = getattr(learner.model.backbone, "initial" if backbone is PADNet else "early")
    for module in part.modules():
        module.register_forward_hook(lambda *_: pytest.fail("an early prediction was made"))
    learner.predict(tiny_batch(2).inputs, NAMES)
    found = learner(tiny_batch(2), NAMES)
    assert not found.early
    assert not found.cross
    assert found.total == found.raw


@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_judges_in_full(backbone) -> None:
    learner = tiny_learner(backbone=backbone)
    exact = learner(tiny_batch(4), NAMES)
    learner.precision = "bf16"
    found = learner(tiny_batch(4), NAMES)
    for task in NAMES:
        assert found.early[task].dtype == found.raw[task].dtype == torch.float32
        torch.testing.assert_close(found.early[task], exact.early[task], rtol=0.05, atol=0.01)
    assert all(term.dtype == torch.float32 for term in found.cross.values())
    assert step(learner, sgd(learner, lr=0.1), tiny_batch(4)).skipped is None


@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_at_other_parameters_have_early_predictions_too(backbone) -> None:
    learner = tiny_learner(backbone=backbone)
    moved = {name: (p.detach() + 0.1).requires_grad_() for name, p in learner.named_parameters()}
    there = learner.losses_at(moved, tiny_batch(4), NAMES)
    gradients = torch.autograd.grad(
        torch.stack([*there.balanced.values()]).sum(), [*moved.values()], allow_unused=True
    )
    assert all(g is not None for g in gradients)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            p.copy_(moved[name])
    here = learner(tiny_batch(4), NAMES)
    for task in NAMES:
        torch.testing.assert_close(here.total[task], there.total[task])


class Infinite(MTINet):
    weights = (1e308, 1e308)


def test_an_early_loss_that_is_not_finite_is_named() -> None:
    learner = tiny_learner(backbone=Infinite)
    report = step(learner, sgd(learner, lr=0.1), tiny_batch(4))
    assert report.skipped is not None
    assert "early loss of segmentation is inf" in report.skipped


class Sparse(CrossTaskLoss):
    """Calls its term as the backbone does."""

    def needs(self, batch, tasks):
        return []

    def forward(self, batch, features, predictions):
        return {"sparsity": features.shared[0].square().mean()}


def test_two_terms_of_one_name_are_refused() -> None:
    learner = tiny_learner(backbone=MTINet, cross_task=[Sparse()])
    with pytest.raises(UsageError, match=r"Sparse has a term 'sparsity', as .* the backbone has"):
        learner(tiny_batch(4), NAMES)


def test_terms_count_once_outside_the_balancing() -> None:
    learner = tiny_learner([Seen()], backbone=MTINet).double()
    batch = double(tiny_batch(4))
    found = learner(batch, NAMES)
    parameters = dict(learner.model.named_parameters())
    total = torch.stack([*found.balanced.values(), found.cross["sparsity"]]).sum()
    gradients = torch.autograd.grad(total, [*parameters.values()])
    before = {name: p.detach().clone() for name, p in parameters.items()}
    step(learner, sgd(learner, lr=0.1), batch)
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * gradient)


class Counting(MTINet):
    heard = 0

    def after_step(self, context: StepContext) -> None:
        self.heard += 1
        assert set(context.losses) == set(context.present)
        assert all(math.isfinite(loss) for loss in context.losses.values())


def test_a_backbone_hears_of_steps_that_were_taken() -> None:
    learner = tiny_learner(backbone=Counting)
    optimizer = sgd(learner, lr=0.1)
    step(learner, optimizer, tiny_batch(4))
    poisoned = tiny_batch(4)
    poisoned.inputs[0] = math.inf
    assert step(learner, optimizer, poisoned).skipped is not None
    assert learner.model.backbone.heard == 1
    assert not sgd(tiny_learner(), lr=0.1)._update._listeners


class Chosen(GramianBalancer):
    """Other weights for shared parameters than for those of one task."""

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        return torch.tensor([[1.0, 2.0, -0.5], [0.3, 1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rows_of_features_have_early_predictions_in_them(backbone) -> None:
    states = []
    for scope in ("shared", "features"):
        learner = tiny_learner([Chosen(scope)], backbone=backbone).double()
        report = step(learner, sgd(learner, lr=0.1), double(tiny_batch(4)))
        assert report.skipped is None
        states.append(dict(learner.model.state_dict()))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


class Stating(PADNet):
    """Names the maps of which all predictions are made, early ones and those of heads."""

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        shared = self.trunk(inputs).tanh()
        before = {key: self.branches[key](shared).tanh() for key in self.tasks.values()}
        after = {task: (self._distilled(self.tasks[task], before),) for task in tasks}
        keys = {task: self.tasks[task] for task in tasks if self.training}
        early = {
            task: [EarlyPrediction(self.initial[key](before[key]))] for task, key in keys.items()
        }
        return Features(per_task=after, cut=tuple(before.values()), early=early)


class TestStating(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return Stating(tasks)


class SeenAtFeatures(Seen):
    scope = "features"


def test_tasks_are_compared_at_a_stated_cut_early_predictions_included() -> None:
    learner = tiny_learner([SeenAtFeatures()], backbone=Stating).double()
    batch = double(tiny_batch(4))
    losses = learner(batch, NAMES, separate=True)
    assert losses.boundary is None and len(losses.cut) == len(NAMES)
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                losses.balanced[task], losses.cut, retain_graph=True)])
            for task in NAMES
        ]
    )  # fmt: skip
    step(learner, sgd(learner, lr=0.1), batch)
    (gramian,) = learner.balancing.finisher.seen
    torch.testing.assert_close(gramian, rows @ rows.T)
    assert bool((gramian != 0).all())  # at maps of single tasks, other tasks' gradients are 0
