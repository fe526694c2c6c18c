"""The contracts notice what they are for: each catches components that are wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import mtlcore.testing.methods
from mtlcore.balancing import GradientBalancer, GramianBalancer, LossBalancer
from mtlcore.data import Dataset, Sample
from mtlcore.episodes import Episode, StepPlan
from mtlcore.losses import CrossTaskLoss, Loss, ScalarLoss
from mtlcore.metrics import Metric
from mtlcore.models import Head, Transition
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.plugins import Plugins
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.losses import L1
from mtlcore.standard.metrics import DepthMetric
from mtlcore.standard.samplers import Joint
from mtlcore.tasks import Task
from mtlcore.testing import (
    BackboneContract,
    CrossTaskLossContract,
    DatasetContract,
    EpisodeSamplerContract,
    GradientBalancerContract,
    GramianBalancerContract,
    HeadContract,
    LossBalancerContract,
    LossContract,
    MethodContract,
    MetricContract,
    OptimizerContract,
    ScalarLossContract,
    TinyBackbone,
    assert_plugin_is_light,
)

DEPTH = Task(name="depth", kind="depth", channels=1)


def held_to(contract, component, **attributes):
    """The contract with `component` as its `make`."""

    def make(self, *positional):
        return component(*positional)

    return type(component.__name__, (contract,), {"make": make, **attributes})()


def passes(contract):
    for name in dir(contract):
        if name.startswith("test_"):
            getattr(contract, name)()


def catches(contract, test, message):
    with pytest.raises(AssertionError, match=message):
        getattr(contract, test)()


# Backbones


class LiesAboutChannels(TinyBackbone):
    out_channels = (6, 4)


class LiesAboutItsMultiple(TinyBackbone):
    input_multiple = 1


class EditsItsInput(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs.mul_(2), tasks)


class ClaimsTheTrunk(TinyBackbone):
    def task_parameters(self, task):
        trunk = self.trunk.parameters() if task == "depth" else ()
        return [*super().task_parameters(task), *trunk]


class HasASpare(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.spare = nn.Linear(2, 2)


class LooksAtTheBatch(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs - inputs.mean(0, keepdim=True), tasks)


class RunsEveryBranch(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs, list(self.keys))


class ForgetsItsPhase(TinyBackbone):
    started = False
    named = ("trunk.0.weight",)

    def at_progress(self, fraction):
        if self.started or fraction < 0.5:
            return None
        self.started = True
        nn.init.normal_(self.trunk[0].weight)
        return Transition(reset=self.named)


class NamesNothing(ForgetsItsPhase):
    named = ()


class CutsTooEarly(TinyBackbone):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        return replace(features, cut=(features.per_task[tasks[0]][0],))


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (LiesAboutChannels, "test_maps_are_as_announced", "announced are"),
        (LiesAboutItsMultiple, "test_maps_are_as_announced", "no multiple of stride"),
        (EditsItsInput, "test_the_input_stays_as_it_was", "edited in place"),
        (ClaimsTheTrunk, "test_task_parameters_are_honest", "declared as depth's own"),
        (HasASpare, "test_every_parameter_is_reached", "spare.weight"),
        (LooksAtTheBatch, "test_samples_do_not_see_one_another_in_evaluation", "its batch"),
        (RunsEveryBranch, "test_absent_tasks_leave_no_trace", "not asked for changed"),
        (ForgetsItsPhase, "test_state_comes_back", "part of its state"),
        (NamesNothing, "test_transitions_say_what_they_change", "were named"),
        (CutsTooEarly, "test_the_cut_is_crossed", "through the cut"),
    ],
)
def test_backbones(component, test, message):
    catches(held_to(BackboneContract, component), test, message)


def test_what_no_loss_reaches_can_be_listed():
    held_to(BackboneContract, HasASpare, unreached=("spare",)).test_every_parameter_is_reached()


# Heads


class StaysSmall(ConvHead):
    def forward(self, features):
        return super().forward(features)[..., ::2, ::2]


class ForgetsToReset(ConvHead):
    def reset_parameters(self):
        self.hidden.reset_parameters()


class EditsTheFeatures(ConvHead):
    def forward(self, features):
        return super().forward([x.relu_() for x in features])


class OnlySingle(Head):
    def __init__(self, task, features):
        super().__init__()
        self.output = nn.Conv2d(features.channels[-1], task.channels, 1)
        self.stride = features.strides[-1]

    def forward(self, features):
        return nn.functional.interpolate(
            self.output(features[-1]), scale_factor=self.stride
        ).float()

    def reset_parameters(self):
        self.output.reset_parameters()


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (StaysSmall, "test_shape", "expected"),
        (OnlySingle, "test_shape", "torch.float32 out"),
        (ForgetsToReset, "test_reset_draws_every_parameter_anew", "output.weight"),
        (EditsTheFeatures, "test_the_features_stay_as_they_were", "edited in place"),
    ],
)
def test_heads(component, test, message):
    catches(held_to(HeadContract, component), test, message)


# Losses


class PlainLoss(Loss):
    def __init__(self, task):
        super().__init__()


class DividesBySafe(PlainLoss):
    def elementwise(self, prediction, target):
        return ((prediction - target).abs() / (target - 1)).mean(1)


class Centred(PlainLoss):
    def elementwise(self, prediction, target):
        values = (prediction - target).square().mean(1)
        return values / values.mean((1, 2), keepdim=True)


class KeepsTheChannel(PlainLoss):
    def elementwise(self, prediction, target):
        return (prediction - target).abs()


class EditsTheTarget(PlainLoss):
    def elementwise(self, prediction, target):
        return (prediction - target.add_(1)).abs().mean(1)


class HalfAGradient(PlainLoss):
    def elementwise(self, prediction, target):
        error = prediction - target
        return (error * error.detach()).mean(1)


class CentredOnTheBatch(PlainLoss):
    def elementwise(self, prediction, target):
        values = (prediction - target).abs().mean(1)
        return values - values.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (DividesBySafe, "test_finite_at_safe_values", "labels are missing"),
        (Centred, "test_masked_elements_leave_no_trace", "where nothing is valid"),
        (KeepsTheChannel, "test_map_is_shaped_like_the_mask", "for a mask of"),
        (EditsTheTarget, "test_inputs_stay_as_they_were", "the target was edited"),
        (HalfAGradient, "test_gradient", "derivative"),
        (CentredOnTheBatch, "test_samples_do_not_see_one_another", "its batch"),
    ],
)
def test_losses(component, test, message):
    catches(held_to(LossContract, component, task=DEPTH), test, message)


class PlainScalar(ScalarLoss):
    def __init__(self, task):
        super().__init__()

    def forward(self, prediction, target, valid):
        error = (prediction - target).square() * valid.unsqueeze(1)
        return error.sum() / valid.sum()


class ForgetsTheMask(PlainScalar):
    def forward(self, prediction, target, valid):
        return (prediction - target).square().mean()


class GivesAVector(PlainScalar):
    def forward(self, prediction, target, valid):
        return super().forward(prediction, target, valid)[None]


class DividesBySample(PlainScalar):
    def forward(self, prediction, target, valid):
        error = ((prediction - target).square() * valid.unsqueeze(1)).sum((1, 2, 3))
        return (error / valid.sum((1, 2))).mean()


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (ForgetsTheMask, "test_masked_elements_leave_no_trace", "nothing is valid"),
        (ForgetsTheMask, "test_samples_without_labels_leave_no_trace", "has a gradient"),
        (GivesAVector, "test_is_a_scalar", "shape"),
        (DividesBySample, "test_samples_without_labels_leave_no_trace", "infinite or NaN"),
    ],
)
def test_scalar_losses(component, test, message):
    catches(held_to(ScalarLossContract, component, task=DEPTH), test, message)


def test_a_good_scalar_loss_passes():
    passes(held_to(ScalarLossContract, PlainScalar, task=DEPTH))


class Agree(CrossTaskLoss):
    """Pulls two predictions together where both tasks have labels."""

    def __init__(self, tasks, features):
        super().__init__()

    def needs(self, batch, tasks):
        return [task for task in ("depth", "normals") if task in tasks]

    def forward(self, batch, features, predictions):
        if not {"depth", "normals"} <= set(predictions):
            return {}
        gap = predictions["depth"].mean(1) - predictions["normals"].mean(1)
        both = batch.valid["depth"] & batch.valid["normals"]
        return {"agree": (gap.square() * both).sum() / both.sum().clamp(min=1)}


class NeedsEverything(Agree):
    def needs(self, batch, tasks):
        return ["depth", "normals"]


class NeverDivides(Agree):
    def forward(self, batch, features, predictions):
        both = (batch.valid["depth"] & batch.valid["normals"]).sum()
        return {"agree": predictions["depth"].mean() / both}


class ReadsMissingLabels(Agree):
    def forward(self, batch, features, predictions):
        return {"agree": (predictions["depth"] - batch.targets["depth"]).abs().mean()}


class EditsPredictions(Agree):
    def forward(self, batch, features, predictions):
        predictions["depth"].data.mul_(2)
        return super().forward(batch, features, predictions)


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (NeedsEverything, "test_needs_names_tasks_of_the_step", "of the tasks"),
        (NeverDivides, "test_terms_are_finite_scalars", "not finite"),
        (ReadsMissingLabels, "test_missing_labels_leave_no_trace", "not valid change"),
        (EditsPredictions, "test_inputs_stay_as_they_were", "edited in place"),
    ],
)
def test_cross_task_losses(component, test, message):
    catches(held_to(CrossTaskLossContract, component), test, message)


def test_a_good_cross_task_loss_passes():
    passes(held_to(CrossTaskLossContract, Agree))


# Metrics


class MeanOfBatches(Metric):
    higher_is_better = {"error": False}

    def __init__(self, task):
        self.values = []

    def update(self, prediction, target, valid):
        error = (prediction - target).abs().mean(1)
        if valid.any():
            self.values.append(float(error[valid].mean()))

    def compute(self):
        mean = sum(self.values) / len(self.values) if self.values else float("nan")
        return {"error": mean}

    def merge(self, other):
        self.values += other.values

    def reset(self):
        self.values = []


class ZeroForNothing(MeanOfBatches):
    def compute(self):
        return {"error": sum(self.values) / max(len(self.values), 1)}


class MetricWithoutMask(MeanOfBatches):
    def update(self, prediction, target, valid):
        super().update(prediction, target, torch.ones_like(valid))


class NeverResets(MeanOfBatches):
    def reset(self):
        pass


class ForgetsToMerge(MeanOfBatches):
    def merge(self, other):
        pass


class NoDirection(MeanOfBatches):
    higher_is_better = {"error": False, "accuracy": True}


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (MeanOfBatches, "test_batches_do_not_matter", "changes error"),
        (ZeroForNothing, "test_nothing_valid_is_nan", "is 0"),
        (MetricWithoutMask, "test_masked_elements_leave_no_trace", "nothing is valid"),
        (NeverResets, "test_reset_forgets_everything", "before a reset"),
        (ForgetsToMerge, "test_merging_is_seeing_everything", "merging"),
        (NoDirection, "test_directions_are_those_of_the_figures", "directions for"),
    ],
)
def test_metrics(component, test, message):
    catches(held_to(MetricContract, component, task=DEPTH), test, message)


def test_a_good_metric_passes():
    passes(held_to(MetricContract, DepthMetric, task=DEPTH))


# Balancers of losses


class Plain(LossBalancer):
    def transform(self, losses, context):
        return dict(losses)


class WeighsAbsentTasks(Plain):
    def transform(self, losses, context):
        zero = next(iter(losses.values())) * 0
        return {task: losses.get(task, zero) for task in context.tasks}


class EditsLosses(Plain):
    def transform(self, losses, context):
        return {task: loss.data.mul_(2) + loss for task, loss in losses.items()}


class CountsInTransform(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def transform(self, losses, context):
        self.steps += 1
        return {task: loss / self.steps for task, loss in losses.items()}


class LosesItsState(Plain):
    steps = 1

    def transform(self, losses, context):
        return {task: loss / self.steps for task, loss in losses.items()}

    def after_step(self, context):
        self.steps += 1


class IgnoresTheGenerator(Plain):
    def transform(self, losses, context):
        weights = torch.rand(len(losses)).tolist()
        return {t: w * x for (t, x), w in zip(losses.items(), weights, strict=True)}


class DividesBySquares(Plain):
    def transform(self, losses, context):
        return {task: loss / loss.detach() ** 6 for task, loss in losses.items()}


class ForgetsATask(Plain):
    def transform(self, losses, context):
        return {t: x.detach() if t == "depth" else x for t, x in losses.items()}


class DecaysEverybody(Plain):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.key, torch.ones(()))

    def after_step(self, context):
        for buffer in self.buffers():
            buffer.mul_(0.9)


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (WeighsAbsentTasks, "test_every_present_task_keeps_its_loss", "out"),
        (EditsLosses, "test_losses_stay_as_they_were", "was edited"),
        (CountsInTransform, "test_state_moves_in_after_step_only", "transform changed"),
        (LosesItsState, "test_state_comes_back", "not part of its state"),
        (IgnoresTheGenerator, "test_randomness_comes_from_the_context", "global generator"),
        (DividesBySquares, "test_finite_for_tiny_and_large_losses", "become"),
        (ForgetsATask, "test_gradients_reach_every_loss", "depth"),
        (DecaysEverybody, "test_absent_tasks_leave_no_trace", "in a step without it"),
        (DecaysEverybody, "test_preparing_again_keeps_what_was_learnt", "in prepare"),
    ],
)
def test_loss_balancers(component, test, message):
    catches(held_to(LossBalancerContract, component), test, message)


# Balancers of Gramians


class Mean(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


class DividesByZero(Mean):
    def weights(self, gramian, context=None):
        return gramian.diagonal().rsqrt()


class AbsoluteThreshold(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian) / (gramian.diagonal() > 1e-20)


class Single(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian).float()


class FirstTaskOnly(Mean):
    def weights(self, gramian, context=None):
        return torch.eye(len(gramian), dtype=torch.float64)[0]


class TurnsAround(Mean):
    def weights(self, gramian, context=None):
        return -super().weights(gramian)


class EditsTheGramian(Mean):
    def weights(self, gramian, context=None):
        gramian.fill_diagonal_(1)
        return super().weights(gramian)


class RandomWeights(Mean):
    def weights(self, gramian, context=None):
        return torch.rand(len(gramian), dtype=torch.float64)


class MovesStateEarly(Mean):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def weights(self, gramian, context=None):
        self.steps += 1
        return super().weights(gramian)


class LosesItsAverage(Mean):
    steps = 1

    def weights(self, gramian, context=None):
        return super().weights(gramian) / self.steps

    def after_step(self, context):
        self.steps += 1


class DependsOnSize(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian) + gramian.diagonal()


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (DividesByZero, "test_finite_for_degenerate_gradients", "a zero row: weights"),
        (AbsoluteThreshold, "test_finite_at_every_scale", "of size 1e-12"),
        (Single, "test_any_number_of_tasks", "torch.float32"),
        (FirstTaskOnly, "test_order_of_tasks_does_not_matter", "another order"),
        (FirstTaskOnly, "test_weights_move_with_their_tasks", "another order"),
        (TurnsAround, "test_agreeing_tasks_are_not_turned_around", "all tasks agree"),
        (EditsTheGramian, "test_input_stays_as_it_was", "edited in place"),
        (RandomWeights, "test_randomness_comes_from_the_generator", "global generator"),
        (MovesStateEarly, "test_state_moves_in_after_step_only", "before after_step"),
        (LosesItsAverage, "test_state_comes_back", "its state is not whole"),
        (DependsOnSize, "test_scale_of_all_gradients_does_not_matter", "turns the direction"),
    ],
)
def test_gramian_balancers(component, test, message):
    catches(held_to(GramianBalancerContract, component), test, message)


def test_a_claim_can_be_switched_off():
    contract = held_to(GramianBalancerContract, FirstTaskOnly, permutation_equivariant=False)
    passes(contract)


def test_a_good_gramian_balancer_passes():
    passes(held_to(GramianBalancerContract, Mean))


# Balancers of gradients


class SignVote(GradientBalancer):
    """Keeps a coordinate where enough tasks agree on its sign."""

    elementwise = True

    def combine(self, rows, context=None):
        return rows.sum(0) * (rows.sign().mean(0).abs() >= 0.4)


class RandomVote(SignVote):
    """Keeps every coordinate with probability one half."""

    def combine(self, rows, context=None):
        draws = torch.rand(rows.shape[1], generator=self.random(context), dtype=rows.dtype)
        return rows.sum(0) * (draws < 0.5)


class OnlyCallsItselfElementwise(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) / rows.norm().clamp(min=1e-30)


class DividesByNorm(SignVote):
    def combine(self, rows, context=None):
        return (rows / rows.norm(dim=1, keepdim=True)).sum(0)


class EditsItsRows(SignVote):
    def combine(self, rows, context=None):
        return rows.mul_(2).sum(0)


class AlwaysDouble(SignVote):
    def combine(self, rows, context=None):
        return super().combine(rows).double()


class GoesUphill(SignVote):
    def combine(self, rows, context=None):
        return -super().combine(rows)


class VotesAtRandom(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) * (torch.rand(rows.shape[1]) < 0.5)


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (OnlyCallsItselfElementwise, "test_elementwise_means_elementwise", "other values"),
        (DividesByNorm, "test_finite_for_degenerate_gradients", "a zero row: not finite"),
        (EditsItsRows, "test_input_stays_as_it_was", "edited in place"),
        (AlwaysDouble, "test_single_precision", "torch.float64 out"),
        (GoesUphill, "test_agreeing_tasks_are_not_turned_around", "all tasks agree"),
        (VotesAtRandom, "test_randomness_comes_from_the_generator", "global generator"),
    ],
)
def test_gradient_balancers(component, test, message):
    catches(held_to(GradientBalancerContract, component), test, message)


@pytest.mark.parametrize("component", [SignVote, RandomVote])
def test_good_gradient_balancers_pass(component):
    passes(held_to(GradientBalancerContract, component))


# Episode samplers


class GlobalShuffle(Joint):
    def epoch(self, tasks, batch_size, generator):
        yield from super().epoch(tasks, batch_size, torch.default_generator)


class OneStepTooMany(Joint):
    def steps(self, batch_size):
        return super().steps(batch_size) + 1


class AlwaysTheSame(Joint):
    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks, batch_size, torch.Generator().manual_seed(0))


class EveryTask(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, splits)
        self.tasks = tasks

    def epoch(self, tasks, batch_size, generator):
        return super().epoch(self.tasks, batch_size, generator)


class QueriesItsSupport(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(plan.batches, (Episode(tuple(tasks), support=0, query=0),))


class OutOfRange(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, {"train": splits["train"] + 1})


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (GlobalShuffle, "test_epochs_follow_the_generator_alone", "global generator"),
        (OneStepTooMany, "test_steps_are_as_announced", "an epoch has"),
        (AlwaysTheSame, "test_epochs_differ", "the same"),
        (EveryTask, "test_only_the_tasks_asked_for", "asked for"),
        (QueriesItsSupport, "test_query_samples_are_not_learnt_from", "share train samples"),
        (OutOfRange, "test_indices_are_in_range", "has 23 samples"),
    ],
)
def test_episode_samplers(component, test, message):
    catches(held_to(EpisodeSamplerContract, component), test, message)


# Optimizers


def momentum(groups):
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)


class Momentum(GradientDescent):
    def __init__(self, learner, make=momentum):
        super().__init__(learner, make, Schedule(), None)


class KeepsPoisonedBuffers(Momentum):
    @staticmethod
    def _copy(source, destination):
        pass


class KeepsPoisonedGradients(Momentum):
    def _clip_gradients(self):
        return 0.0


class LosesItsMoments(Momentum):
    def load_state_dict(self, state):
        pass


class RemembersForgotten(Momentum):
    def forget(self, parameters):
        pass


class ForgetsEverything(Momentum):
    def forget(self, parameters):
        self._torch.state.clear()


class FillingIn(torch.optim.SGD):
    """Takes a gradient of zero where there is none, so that momentum and decay go on."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().step(closure)


class MovesAbsentTasks(Momentum):
    def __init__(self, learner):
        super().__init__(learner, lambda groups: FillingIn(groups, lr=0.01, weight_decay=0.1))


class DoesNothing(Momentum):
    def __init__(self, learner):
        super().__init__(learner, lambda groups: torch.optim.SGD(groups, lr=0.0))


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (
            KeepsPoisonedBuffers,
            "test_a_step_that_is_not_finite_changes_nothing",
            "an infinite input: the skipped step changed .*running_mean",
        ),
        (
            KeepsPoisonedGradients,
            "test_a_step_that_is_not_finite_changes_nothing",
            "NaN: the step is not reported",
        ),
        (LosesItsMoments, "test_state_comes_back", "restored"),
        (RemembersForgotten, "test_forgetting_is_starting_anew", "should be forgotten"),
        (ForgetsEverything, "test_forgetting_a_head_leaves_the_others", "changes the update"),
        (MovesAbsentTasks, "test_absent_tasks_stay_as_they_are", "absent task changed"),
        (DoesNothing, "test_a_step_learns", "do not learn"),
    ],
)
def test_optimizers(component, test, message):
    catches(held_to(OptimizerContract, component), test, message)


def test_a_good_optimizer_passes():
    passes(held_to(OptimizerContract, Momentum))


# Datasets


class Ramps(Dataset):
    """Four samples of a depth that is the image's brightness."""

    largest = 1.0

    def __init__(self, split):
        self._split = split

    @classmethod
    def describe(cls, root, **settings):
        return (DEPTH,)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = torch.linspace(0.1, self.largest, 24).reshape(1, 4, 6).repeat(3, 1, 1)
        return Sample(
            inputs=image,
            targets={"depth": self.depth(image)},
            valid={"depth": torch.ones(4, 6, dtype=torch.bool)},
            key=f"ramps/{self._split}/{index}",
        )

    def depth(self, image):
        return image[:1] + 1


class BytesForFloats(Ramps):
    largest = 255.0


class DropsTheChannel(Ramps):
    def depth(self, image):
        return image[0]


class NegativeDepth(Ramps):
    def depth(self, image):
        return -image[:1]


class AnotherEachTime(Ramps):
    def depth(self, image):
        return torch.rand(1, 4, 6) + 1


class OneTensorForAll(Ramps):
    kept = torch.ones(1, 4, 6)

    def depth(self, image):
        return self.kept


class DoublePrecision(Ramps):
    def depth(self, image):
        return image[:1].double() + 1


class TooLong(Ramps):
    def __getitem__(self, index):
        if index >= 3:
            raise AssertionError("there are only three")
        return super().__getitem__(index)


class LosesItsSplit(Ramps):
    def __getstate__(self):
        return {"_split": "train"}


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (BytesForFloats, "test_inputs", "expected 0 to 1"),
        (DropsTheChannel, "test_labels_are_as_described", "has shape"),
        (NegativeDepth, "test_labels_are_as_described", "a depth of"),
        (DoublePrecision, "test_labels_are_as_described", "torch.float64"),
        (AnotherEachTime, "test_reading_twice_gives_the_same", "second sight"),
        (OneTensorForAll, "test_reading_twice_gives_the_same", "second sight"),
        (TooLong, "test_has_the_splits_and_samples_it_says", "only three"),
        (LosesItsSplit, "test_travels_to_workers", "other samples"),
    ],
)
def test_datasets(component, test, message):
    catches(held_to(DatasetContract, component, tasks=lambda self: (DEPTH,)), test, message)


def test_a_good_dataset_passes():
    passes(held_to(DatasetContract, Ramps, tasks=lambda self: (DEPTH,)))


# Methods and plugins

METHODS = """
from mtlcore import BalancerSpec, MethodSpec, hookimpl
from mtlcore.balancing import LossBalancer

class Explode(LossBalancer):
    def transform(self, losses, context):
        return {task: loss * float("inf") for task, loss in losses.items()}

@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="explode", target=Explode)

@hookimpl
def mtl_methods():
    fixed = {"balancer": {"name": "fixed", "weights": {"depth": 2.0}}}
    yield MethodSpec(name="good", summary="s", preset=fixed, requires=("balancers/fixed",))
    yield MethodSpec(name="absent", summary="s", preset={"balancer": {"name": "nowhere"}})
    yield MethodSpec(name="not-itself", summary="s", preset={}, requires=("balancers/explode",))
    yield MethodSpec(name="misspelt", summary="s", preset=fixed, requires=("balancers/fxed",))
    yield MethodSpec(name="explodes", summary="s", preset={"balancer": {"name": "explode"}})
"""


@pytest.fixture
def method(tmp_path, monkeypatch):
    """Contracts of the methods above, as if their plugin were installed."""
    file = tmp_path / "some_methods.py"
    file.write_text(METHODS)
    plugins = Plugins(entry_points=())
    plugins.load_file(str(file))
    monkeypatch.setattr(
        mtlcore.testing.methods.Plugins, "from_environment", classmethod(lambda cls: plugins)
    )
    return lambda name: type(name, (MethodContract,), {"method": name})()


def test_methods(method):
    passes(method("good"))
    catches(method("absent"), "test_the_preset_is_a_configuration", "nowhere")
    catches(method("not-itself"), "test_the_preset_is_a_configuration", "not itself without")
    catches(method("misspelt"), "test_it_is_itself", "requires balancers/fxed")
    catches(method("explodes"), "test_it_learns", "learns nothing")


def test_heavy_plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "light_plugin.py").write_text("import json\n")
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "broken_plugin.py").write_text("import there_is_no_such_module\n")
    assert_plugin_is_light("light_plugin")
    with pytest.raises(AssertionError, match="imports torch"):
        assert_plugin_is_light("heavy_plugin")
    with pytest.raises(AssertionError, match="there_is_no_such_module"):
        assert_plugin_is_light("broken_plugin")


def test_a_good_loss_passes():
    passes(held_to(LossContract, L1, task=DEPTH))
