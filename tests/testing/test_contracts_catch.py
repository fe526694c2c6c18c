"""The contracts notice what they are for: each catches components that are wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import attrs
import pytest
import torch
from torch import nn

import mtlcore.testing.methods
from mtlcore.balancing import GradientBalancer, GramianBalancer, LossBalancer
from mtlcore.data import Dataset, Sample, check_split
from mtlcore.episodes import Episode, StepPlan
from mtlcore.losses import CrossTaskLoss, Loss, ScalarLoss
from mtlcore.metrics import Metric
from mtlcore.models import Head, Transition
from mtlcore.optimizers import GradientDescent, Schedule, StepReport
from mtlcore.plugins import Plugins
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.losses import L1
from mtlcore.standard.metrics import DepthMetric
from mtlcore.standard.samplers import Joint
from mtlcore.standard.segnet import initialise
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
    assert_plugin_is_whole,
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
    """Its test fails: with the contract's own words, or with an error of the component's."""
    with pytest.raises(Exception, match=message):
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


class LiesAboutStrides(TinyBackbone):
    strides = (2, 1)


class MixesTasks(TinyBackbone):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        mean = sum(maps for (maps,) in features.per_task.values()) / len(tasks)
        return replace(features, per_task={t: (m + mean,) for t, (m,) in features.per_task.items()})


class SharesABranch(TinyBackbone):
    def task_parameters(self, task):
        return super().task_parameters("depth")


class ClaimsAStranger(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.strangers = [nn.Parameter(torch.zeros(2))]

    def task_parameters(self, task):
        return [*super().task_parameters(task), *(self.strangers if task == "depth" else ())]


class ClaimsAnothersBranch(TinyBackbone):
    def task_parameters(self, task):
        first, second, *_ = self.keys
        swapped = {first: second, second: first}
        return super().task_parameters(swapped.get(task, task))


class NormalisesImages(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs / inputs.std(), tasks)


class CountsImages(TinyBackbone):
    images = 0

    def forward(self, inputs, tasks):
        self.images += len(inputs)
        return super().forward(inputs, tasks)

    def get_extra_state(self):
        return {"images": self.images}

    def set_extra_state(self, state):
        self.images = state["images"]


class LearnsInEvaluation(TinyBackbone):
    def forward(self, inputs, tasks):
        self.trunk[1].train()
        return super().forward(inputs, tasks)


class KeepsBranchesByName(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.keys = {task.name: task.name for task in tasks}
        self.branches = nn.ModuleDict({task.name: self.branches[task.key] for task in tasks})


class WarmsUp(TinyBackbone):
    steps = 0

    def forward(self, inputs, tasks):
        self.steps += self.training
        return super().forward(inputs * self.steps, tasks)


class LastIsPrivate(TinyBackbone):
    def last_shared_parameters(self):
        return self.branches["task_depth"].parameters()


class LastIsUnused(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.spare = nn.Linear(2, 2)

    def last_shared_parameters(self):
        return self.spare.parameters()


class ChangesTwice(TinyBackbone):
    def at_progress(self, fraction):
        if fraction < 0.5:
            return None
        nn.init.normal_(self.trunk[0].weight)
        return Transition(reset=("trunk.0.weight",))


BACKBONES = [
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
    (LiesAboutStrides, "test_maps_are_as_announced", "announced are"),
    (MixesTasks, "test_only_the_tasks_asked_for_are_needed", "with the other tasks"),
    (SharesABranch, "test_task_parameters_are_honest", "belongs to two tasks"),
    (ClaimsAStranger, "test_task_parameters_are_honest", "none of the backbone's"),
    (ClaimsAnothersBranch, "test_task_parameters_are_honest", "does not reach its"),
    (NormalisesImages, "test_plain_images_are_finite", "0.0 everywhere"),
    (CountsImages, "test_a_forward_pass_changes_buffers_only", "training changes .*extra_state"),
    (LearnsInEvaluation, "test_a_forward_pass_changes_buffers_only", "evaluation changes"),
    (KeepsBranchesByName, "test_tasks_may_have_any_name", "type"),
    (WarmsUp, "test_state_comes_back", "gives other features"),
    (LastIsPrivate, "test_last_shared_parameters_are_shared", "one task alone"),
    (LastIsUnused, "test_last_shared_parameters_are_shared", "reaches none"),
    (ChangesTwice, "test_transitions_say_what_they_change", "changes itself twice"),
]


@pytest.mark.parametrize(("component", "test", "message"), BACKBONES)
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


class ResetsToZero(ConvHead):
    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ResetsToTiny(ConvHead):
    def reset_parameters(self):
        super().reset_parameters()
        for parameter in self.parameters():
            parameter.data.mul_(0.01)


class ResetsToItsBirth(ConvHead):
    def __init__(self, task, features):
        super().__init__(task, features)
        self.birth = [parameter.detach().clone() for parameter in self.parameters()]

    def reset_parameters(self):
        for parameter, value in zip(self.parameters(), self.birth, strict=True):
            parameter.data.copy_(value)


class Normed(ConvHead):
    def __init__(self, task, features):
        super().__init__(task, features)
        self.norm = nn.BatchNorm2d(features.channels[-1])

    def forward(self, features):
        return super().forward([*features[:-1], self.norm(features[-1])])


class ForgetsTheNorm(Normed):
    def reset_parameters(self):
        for layer in (self.hidden, self.output):
            initialise(layer)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)


class CutsTheGraph(ConvHead):
    def forward(self, features):
        return super().forward([x.detach() for x in features])


class CentresTheBatch(ConvHead):
    def forward(self, features):
        prediction = super().forward(features)
        return prediction - prediction.mean(0, keepdim=True)


class KeepsItsScaleToItself(ConvHead):
    scale = 1.0

    def forward(self, features):
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * float(features[-1].detach().std())
        return super().forward(features) / self.scale


class CountsPasses(ConvHead):
    passes = 0

    def forward(self, features):
        self.passes += 1
        return super().forward(features)

    def get_extra_state(self):
        return {"passes": self.passes}

    def set_extra_state(self, state):
        self.passes = state["passes"]


class HasASpareLayer(ConvHead):
    def __init__(self, task, features):
        super().__init__(task, features)
        self.spare = nn.Linear(2, 2)


HEADS = [
    (StaysSmall, "test_shape", "expected"),
    (OnlySingle, "test_shape", "torch.float32 out"),
    (ForgetsToReset, "test_reset_draws_every_parameter_anew", "output.weight"),
    (EditsTheFeatures, "test_the_features_stay_as_they_were", "edited in place"),
    (ResetsToZero, "test_reset_is_starting_anew", "the same values each time"),
    (ResetsToItsBirth, "test_reset_is_starting_anew", "the same values each time"),
    (ResetsToTiny, "test_reset_is_starting_anew", "a new head's is"),
    (ForgetsTheNorm, "test_reset_is_starting_anew", "norm.running_mean"),
    (CutsTheGraph, "test_the_features_are_reached", "learnt from"),
    (CentresTheBatch, "test_samples_do_not_see_one_another_in_evaluation", "its batch"),
    (KeepsItsScaleToItself, "test_state_comes_back", "predicts something else"),
    (CountsPasses, "test_a_forward_pass_changes_buffers_only", "extra_state"),
    (HasASpareLayer, "test_every_parameter_is_reached", "spare.weight"),
]


@pytest.mark.parametrize(("component", "test", "message"), HEADS)
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


class CountsByPlace(PlainLoss):
    def elementwise(self, prediction, target):
        places = torch.arange(1, 1 + len(target), dtype=prediction.dtype)
        return (prediction - target).abs().mean(1) * places[:, None, None]


class WeighsNearOnes(PlainLoss):
    def elementwise(self, prediction, target):
        weight = (target[:, 0] >= 0.6).to(prediction.dtype)
        return (prediction - target).abs().mean(1) * weight, weight


class OverflowsInFloat32(PlainLoss):
    def elementwise(self, prediction, target):
        return (1 + (prediction - target).exp()).log().mean(1)


class NeedsPositivePredictions(PlainLoss):
    def elementwise(self, prediction, target):
        return (prediction.log() - target.log()).abs().mean(1)


class DividesByItsFirst(PlainLoss):
    first = None

    def elementwise(self, prediction, target):
        values = (prediction - target).abs().mean(1)
        self.first = self.first or float(values.detach().mean())
        return values / self.first


LOSSES = [
    (DividesBySafe, "test_finite_at_safe_values", "labels are missing"),
    (Centred, "test_masked_elements_leave_no_trace", "where nothing is valid"),
    (KeepsTheChannel, "test_map_is_shaped_like_the_mask", "for a mask of"),
    (EditsTheTarget, "test_inputs_stay_as_they_were", "the target was edited"),
    (HalfAGradient, "test_gradient", "derivative"),
    (CentredOnTheBatch, "test_samples_do_not_see_one_another", "its batch"),
    (CentredOnTheBatch, "test_samples_without_labels_leave_no_trace", "has a gradient"),
    (CountsByPlace, "test_order_of_samples_does_not_matter", "another order"),
    (WeighsNearOnes, "test_one_label_is_enough", "with one label the loss is nan"),
    (OverflowsInFloat32, "test_single_precision", "float32"),
    (NeedsPositivePredictions, "test_finite_at_safe_values", "not finite"),
    (NeedsPositivePredictions, "test_masked_elements_leave_no_trace", "becomes nan"),
    (DividesByItsFirst, "test_state_comes_back", "in buffers"),
]


@pytest.mark.parametrize(("component", "test", "message"), LOSSES)
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


class DividesByTheSpread(PlainScalar):
    def forward(self, prediction, target, valid):
        spread = target[valid[:, None]].var(unbiased=False).sqrt()
        return super().forward(prediction, target, valid) / spread


class DividesByTheFirstLabel(PlainScalar):
    def forward(self, prediction, target, valid):
        return super().forward(prediction, target, valid) / (target[:, :, 0, 0] - 1).prod()


class EditsTheMask(PlainScalar):
    def forward(self, prediction, target, valid):
        valid[:, 0] = False
        return super().forward(prediction, target, valid)


class HalfAScalarGradient(PlainScalar):
    def forward(self, prediction, target, valid):
        error = (prediction - target) * valid.unsqueeze(1)
        return (error * error.detach()).sum() / valid.sum()


class FirstSampleOnly(PlainScalar):
    def forward(self, prediction, target, valid):
        kept = valid * (torch.arange(len(valid)) == 0)[:, None, None]
        return super().forward(prediction, target, kept | ~valid.any())


class SumsExponentials(PlainScalar):
    def forward(self, prediction, target, valid):
        error = (prediction - target).exp() * valid.unsqueeze(1)
        return (error.sum() / valid.sum()).log()


class CountsItsBatches(PlainScalar):
    batches = 0

    def forward(self, prediction, target, valid):
        self.batches += 1
        return super().forward(prediction, target, valid) / self.batches


SCALAR_LOSSES = [
    (ForgetsTheMask, "test_masked_elements_leave_no_trace", "nothing is valid"),
    (ForgetsTheMask, "test_samples_without_labels_leave_no_trace", "has a gradient"),
    (GivesAVector, "test_is_a_scalar", "shape"),
    (DividesBySample, "test_samples_without_labels_leave_no_trace", "infinite or NaN"),
    (DividesByTheFirstLabel, "test_finite_at_safe_values", "not finite"),
    (DividesByTheSpread, "test_one_label_is_enough", "with one label"),
    (EditsTheMask, "test_inputs_stay_as_they_were", "the mask was edited"),
    (HalfAScalarGradient, "test_gradient", "derivative"),
    (FirstSampleOnly, "test_order_of_samples_does_not_matter", "another order"),
    (SumsExponentials, "test_single_precision", "float32"),
    (CountsItsBatches, "test_state_comes_back", "in buffers"),
]


@pytest.mark.parametrize(("component", "test", "message"), SCALAR_LOSSES)
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


class TakesBothForGranted(Agree):
    def forward(self, batch, features, predictions):
        gap = predictions["depth"].mean(1) - predictions["normals"].mean(1)
        return {"agree": gap.square().mean()}


class NeverApplies(Agree):
    def forward(self, batch, features, predictions):
        return {}


class GivesAMap(Agree):
    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        return {name: term.expand(2) for name, term in terms.items()}


class LearnsNothing(Agree):
    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        return {name: 0 * term.detach() + torch.ones((), requires_grad=True)
                for name, term in terms.items()}  # fmt: skip


class GrowsByItself(Agree):
    steps = 0

    def forward(self, batch, features, predictions):
        self.steps += 1
        terms = super().forward(batch, features, predictions)
        return {name: self.steps * term for name, term in terms.items()}


class AsksForTwoViews(Agree):
    views = 2


class HasASpareWeight(Agree):
    def __init__(self, tasks, features):
        super().__init__(tasks, features)
        self.spare = nn.Parameter(torch.ones(()))


class GroupsWhatItDoesNotHave(Agree):
    def parameter_groups(self):
        return [{"params": [nn.Parameter(torch.ones(()))], "lr": 0.1}]


class GroupsTwice(HasASpareWeight):
    def parameter_groups(self):
        return [{"params": [self.spare], "lr": rate} for rate in (0.1, 0.2)]


CROSS_TASK_LOSSES = [
    (NeedsEverything, "test_needs_names_tasks_of_the_step", "of the tasks"),
    (NeverDivides, "test_terms_are_finite_scalars", "not finite"),
    (ReadsMissingLabels, "test_missing_labels_leave_no_trace", "not valid change"),
    (EditsPredictions, "test_inputs_stay_as_they_were", "edited in place"),
    (TakesBothForGranted, "test_runs_with_the_tasks_that_still_learn", "depth"),
    (NeverApplies, "test_applies_to_the_whole_batch", "no term"),
    (GivesAMap, "test_terms_are_finite_scalars", "agree has shape"),
    (LearnsNothing, "test_terms_are_finite_scalars", "nothing learns"),
    (GrowsByItself, "test_state_comes_back", "gives other terms"),
    (AsksForTwoViews, "test_asks_for_the_views_that_it_reads", "asks for 2 views"),
    (HasASpareWeight, "test_everything_of_it_learns", "spare has no gradient"),
    (GroupsWhatItDoesNotHave, "test_its_groups_are_of_its_own_parameters", "not the loss's own"),
    (GroupsTwice, "test_its_groups_are_of_its_own_parameters", "in two groups"),
]


@pytest.mark.parametrize(("component", "test", "message"), CROSS_TASK_LOSSES)
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


class LastBatchOnly(MeanOfBatches):
    def compute(self):
        return {"error": self.values[-1] if self.values else float("nan")}


class ComputesAndForgets(MeanOfBatches):
    def compute(self):
        figures = super().compute()
        self.values = []
        return figures


class RoundsInPlace(MeanOfBatches):
    def update(self, prediction, target, valid):
        super().update(prediction.round_(), target, valid)


class TakesFromTheOther(MeanOfBatches):
    def merge(self, other):
        while other.values:
            self.values.append(other.values.pop())


class GivesATensor(MeanOfBatches):
    def compute(self):
        return {"error": torch.tensor(super().compute()["error"])}


METRICS = [
    (MeanOfBatches, "test_batches_do_not_matter", "changes error"),
    (ZeroForNothing, "test_nothing_valid_is_nan", "is 0"),
    (MetricWithoutMask, "test_masked_elements_leave_no_trace", "nothing is valid"),
    (NeverResets, "test_reset_forgets_everything", "before a reset"),
    (ForgetsToMerge, "test_merging_is_seeing_everything", "merging"),
    (NoDirection, "test_directions_are_those_of_the_figures", "directions for"),
    (LastBatchOnly, "test_order_does_not_matter", "another order changes"),
    (ComputesAndForgets, "test_computing_changes_nothing", "computing before"),
    (RoundsInPlace, "test_inputs_stay_as_they_were", "edited in place"),
    (TakesFromTheOther, "test_merging_is_seeing_everything", "mean|merg"),
    (GivesATensor, "test_directions_are_those_of_the_figures", "is a Tensor"),
]


@pytest.mark.parametrize(("component", "test", "message"), METRICS)
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


class KeepsWeightsByName(Plain):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class WeighsByLastLosses(Plain):
    """Divides by the losses of the step before, which a skipped step must not change."""

    before = {}

    def transform(self, losses, context):
        weighed = {t: x / self.before.get(t, 1.0) for t, x in losses.items()}
        self.before = {t: float(x.detach()) for t, x in losses.items()}
        return weighed

    def get_extra_state(self):
        return self.before

    def set_extra_state(self, state):
        self.before = state


LOSS_BALANCERS = [
    (WeighsAbsentTasks, "test_every_present_task_keeps_its_loss", "out"),
    (EditsLosses, "test_losses_stay_as_they_were", "was edited"),
    (CountsInTransform, "test_state_moves_in_after_step_only", "transform changed"),
    (LosesItsState, "test_state_comes_back", "not part of its state"),
    (IgnoresTheGenerator, "test_randomness_comes_from_the_context", "global generator"),
    (DividesBySquares, "test_finite_for_tiny_and_large_losses", "become"),
    (ForgetsATask, "test_gradients_reach_every_loss", "depth"),
    (DecaysEverybody, "test_absent_tasks_leave_no_trace", "in a step without it"),
    (DecaysEverybody, "test_preparing_again_keeps_what_was_learnt", "in prepare"),
    (KeepsWeightsByName, "test_tasks_may_have_any_name", "type"),
    (WeighsByLastLosses, "test_state_moves_in_after_step_only", "transform changed"),
]


@pytest.mark.parametrize(("component", "test", "message"), LOSS_BALANCERS)
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


class RemembersTheFirst(Mean):
    first = None

    def weights(self, gramian, context=None):
        self.first = gramian if self.first is None else self.first
        return (self.first + gramian).diagonal()


class WaitsForItsTasks(Mean):
    def prepare(self, tasks, data=None):
        self.count = len(tasks)

    def weights(self, gramian, context=None):
        return super().weights(gramian) / self.count


class KeepsMultipliersByName(Mean):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class NoStatus(Mean):
    status = "fine"


class Invert(Mean):
    def weights(self, gramian, context=None):
        return 1 / torch.linalg.det(gramian).expand(len(gramian)) ** 8


GRAMIAN_BALANCERS = [
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
    (RemembersTheFirst, "test_tasks_come_and_go", "size"),
    (WaitsForItsTasks, "test_needs_no_preparation", "count"),
    (KeepsMultipliersByName, "test_tasks_may_have_any_name", "type"),
    (NoStatus, "test_finite_for_degenerate_gradients", "fine"),
    (Invert, "test_finite_at_every_scale", "of size 1e-12"),
]


@pytest.mark.parametrize(("component", "test", "message"), GRAMIAN_BALANCERS)
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


class FewTasks(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) / (len(rows) < 40)


class RemembersItsRows(SignVote):
    before = None

    def combine(self, rows, context=None):
        self.before = rows if self.before is None else self.before + rows
        return self.before.sum(0)


class KeepsMemoryByName(SignVote):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class TrustsTheFirst(SignVote):
    def combine(self, rows, context=None):
        return rows[0]


class AbsoluteQuorum(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) * (rows.abs().mean(0) > 0.5)


class SquaresItsRows(SignVote):
    def combine(self, rows, context=None):
        return (rows * rows.abs() ** 30).sum(0)


class CountsEarly(SignVote):
    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def combine(self, rows, context=None):
        self.asked += 1
        return super().combine(rows)


class AveragesInSecret(SignVote):
    steps = 1

    def combine(self, rows, context=None):
        return super().combine(rows) / self.steps

    def after_step(self, context):
        self.steps += 1


GRADIENT_BALANCERS = [
    (OnlyCallsItselfElementwise, "test_elementwise_means_elementwise", "other values"),
    (DividesByNorm, "test_finite_for_degenerate_gradients", "a zero row: not finite"),
    (EditsItsRows, "test_input_stays_as_it_was", "edited in place"),
    (AlwaysDouble, "test_single_precision", "torch.float64 out"),
    (GoesUphill, "test_agreeing_tasks_are_not_turned_around", "all tasks agree"),
    (VotesAtRandom, "test_randomness_comes_from_the_generator", "global generator"),
    (FewTasks, "test_any_number_of_tasks", "40 tasks: not finite"),
    (RemembersItsRows, "test_tasks_come_and_go", "size"),
    (KeepsMemoryByName, "test_tasks_may_have_any_name", "type"),
    (TrustsTheFirst, "test_order_of_tasks_does_not_matter", "another order"),
    (AbsoluteQuorum, "test_scale_of_all_gradients_does_not_matter", "turns the direction"),
    (SquaresItsRows, "test_finite_at_every_scale", "not finite"),
    (CountsEarly, "test_state_moves_in_after_step_only", "before after_step"),
    (AveragesInSecret, "test_state_comes_back", "its state is not whole"),
]


@pytest.mark.parametrize(("component", "test", "message"), GRADIENT_BALANCERS)
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


class PairsOnly(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield plan if len(tasks) > 1 else StepPlan(plan.batches, ())


class OneBatchForAll(Joint):
    def steps(self, batch_size):
        return 1

    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks, 10**6, generator)


class OneSeedForAll(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(tuple(attrs.evolve(b, seed=0) for b in plan.batches), plan.episodes)


class LearnsFromValidation(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, {"train": splits["val"]})

    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            batches = tuple(attrs.evolve(batch, split="val") for batch in plan.batches)
            yield StepPlan(batches, plan.episodes)


class NamesABatchThatIsNotThere(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(plan.batches, (Episode(tuple(tasks), support=0, query=1),))


class FirstTaskAlone(Joint):
    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks[:1], batch_size, generator)


EPISODE_SAMPLERS = [
    (GlobalShuffle, "test_epochs_follow_the_generator_alone", "global generator"),
    (OneStepTooMany, "test_steps_are_as_announced", "an epoch has"),
    (AlwaysTheSame, "test_epochs_differ", "the same"),
    (EveryTask, "test_only_the_tasks_asked_for", "asked for"),
    (QueriesItsSupport, "test_query_samples_are_not_learnt_from", "share train samples"),
    (OutOfRange, "test_indices_are_in_range", "has 23 samples"),
    (PairsOnly, "test_a_last_task_goes_on_learning", "no episode"),
    (OneBatchForAll, "test_batches_are_of_the_size_asked_for", "a batch of 23"),
    (OneSeedForAll, "test_batches_are_changed_at_random_each_in_its_way", "the same seed"),
    (LearnsFromValidation, "test_only_training_samples_are_learnt_from", "not of train"),
    (NamesABatchThatIsNotThere, "test_episodes_name_batches_of_their_plan", "plan of 1"),
    (FirstTaskAlone, "test_every_task_learns", "only has"),
]


@pytest.mark.parametrize(("component", "test", "message"), EPISODE_SAMPLERS)
def test_episode_samplers(component, test, message):
    catches(held_to(EpisodeSamplerContract, component), test, message)


# Optimizers


def momentum(groups):
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)


class Momentum(GradientDescent):
    def __init__(self, learner, make=momentum):
        super().__init__(learner, make, Schedule(), None)


class KeepsPoisonedBuffers(Momentum):
    def __init__(self, learner):
        super().__init__(learner)
        self._update._buffers = self._update._saved = []


class KeepsPoisonedGradients(Momentum):
    def __init__(self, learner):
        super().__init__(learner)
        self._update._clip_gradients = lambda: True


class LosesItsMoments(Momentum):
    def load_state_dict(self, state):
        pass


class RemembersForgotten(Momentum):
    def reset_state(self, parameters):
        pass


class ForgetsEverything(Momentum):
    def reset_state(self, parameters):
        self._update._torch.state.clear()


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


class SavesNoMoments(Momentum):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class ForgetsThePlateau(Momentum):
    def __init__(self, learner):
        schedule = Schedule(name="plateau", patience=3)
        GradientDescent.__init__(self, learner, momentum, schedule, None)

    def after_evaluation(self, loss):
        super().after_evaluation(loss)
        self._kept = getattr(self, "_kept", None) or self.state_dict()["plateau"]

    def state_dict(self):
        fresh = {"best": float("inf"), "waited": 0, "falls": 0}
        return {**super().state_dict(), "plateau": fresh}


class CountsSkippedSteps(Momentum):
    steps = 0

    def step(self, learner, plan):
        self.steps += 1
        return super().step(learner, plan)

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}


class TellsBalancersAlways(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        if report.skipped:
            learner.balancing.after_step(learner.context)
        return report


class TellsBalancersTwice(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        learner.balancing.after_step(learner.context)
        return report


class SumsByItself:
    """Learns from the plain sum, whatever the balancer says."""

    def __init__(self, learner):
        self.torch = momentum(learner.parameter_groups())

    def step(self, learner, plan):
        found = learner(plan.batches[0], plan.episodes[0].tasks)
        self.torch.zero_grad()
        torch.stack([*found.balanced.values()]).sum().backward()
        self.torch.step()
        learner.context.losses = {task: float(loss.detach()) for task, loss in found.raw.items()}
        learner.balancing.after_step(learner.context)
        return StepReport(losses=learner.context.losses)

    def state_dict(self):
        return self.torch.state_dict()


class TakesTasksOfTheFirstStep(Momentum):
    """Keeps out of training what had no gradient in the first step."""

    late = None

    def step(self, learner, plan):
        before = [p.detach().clone() for p in learner.parameters()]
        report = super().step(learner, plan)
        moved = [not torch.equal(p, b) for p, b in zip(learner.parameters(), before, strict=True)]
        self.late = [not m for m in moved] if self.late is None else self.late
        for late, p, kept in zip(self.late, learner.parameters(), before, strict=True):
            if late:
                p.data.copy_(kept)
        return report


OPTIMIZERS = [
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
    (SavesNoMoments, "test_state_comes_back", "restored"),
    (ForgetsThePlateau, "test_state_comes_back", "restored"),
    (
        CountsSkippedSteps,
        "test_a_step_that_is_not_finite_changes_nothing",
        "the skipped step changed .*optimizer.steps",
    ),
    (
        TellsBalancersAlways,
        "test_a_step_that_is_not_finite_changes_nothing",
        "the skipped step changed .*learner",
    ),
    (TellsBalancersTwice, "test_balancers_hear_of_every_step", "called 2 times"),
    (SumsByItself, "test_balancers_decide", "the same update"),
    (SumsByItself, "test_a_step_that_is_not_finite_changes_nothing", "not reported"),
    (TakesTasksOfTheFirstStep, "test_tasks_may_come_late", "comes late does not learn"),
]


@pytest.mark.parametrize(("component", "test", "message"), OPTIMIZERS)
def test_optimizers(component, test, message):
    catches(held_to(OptimizerContract, component), test, message)


def test_a_good_optimizer_passes():
    passes(held_to(OptimizerContract, Momentum))


# Datasets


class Ramps(Dataset):
    """Four samples of a depth that is the image's brightness."""

    largest = 1.0

    def __init__(self, split):
        check_split("ramps", split, self.splits)
        self._split = split

    @classmethod
    def describe(cls, root, **settings):
        return (DEPTH,)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        dark = 0.1 + 0.1 * index + 0.05 * self.splits.index(self._split)
        image = torch.linspace(dark, self.largest, 24).reshape(1, 4, 6).repeat(3, 1, 1)
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


class OpensAnySplit(Ramps):
    def __init__(self, split):
        self._split = "train" if split not in self.splits else split


class OneForBothSplits(Ramps):
    def __getitem__(self, index):
        self._split, kept = "train", self._split
        sample = super().__getitem__(index)
        self._split = kept
        return attrs.evolve(sample, key=f"ramps/{kept}/{index}")


class OneKeyForAll(Ramps):
    def __getitem__(self, index):
        return attrs.evolve(super().__getitem__(index), key="ramps")


class NotANumber(Ramps):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return attrs.evolve(sample, inputs=sample.inputs / (sample.inputs > 0.2))


class DescribesTooMuch(Ramps):
    """What it says it has labels for is given to the contract as its `tasks`."""

    described = (DEPTH, Task(name="normals", kind="normals", channels=3))


class DescribesTooLittle(Ramps):
    described = ()


class MasksWithNumbers(Ramps):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return attrs.evolve(sample, valid={"depth": sample.valid["depth"].float()})


class Draws(Ramps):
    """Draws from a generator of its own, so that the second sight is of something else."""

    def __init__(self, split):
        super().__init__(split)
        self.generator = torch.Generator().manual_seed(0)

    def depth(self, image):
        return 1 + torch.rand(1, 4, 6, generator=self.generator)


DATASETS = [
    (BytesForFloats, "test_inputs", "expected 0 to 1"),
    (DropsTheChannel, "test_labels_are_as_described", "has shape"),
    (NegativeDepth, "test_labels_are_as_described", "a depth of"),
    (DoublePrecision, "test_labels_are_as_described", "torch.float64"),
    (AnotherEachTime, "test_reading_twice_gives_the_same", "second sight"),
    (OneTensorForAll, "test_reading_twice_gives_the_same", "second sight"),
    (TooLong, "test_has_the_splits_and_samples_it_says", "only three"),
    (LosesItsSplit, "test_travels_to_workers", "other samples"),
    (OpensAnySplit, "test_unknown_splits_are_refused", "no-such-split"),
    (OneForBothSplits, "test_splits_share_no_sample", "are the same"),
    (OneKeyForAll, "test_samples_differ", "not unique"),
    (NotANumber, "test_samples_collate", "NaN or infinite"),
    (DescribesTooMuch, "test_labels_are_as_described", "no valid label of"),
    (DescribesTooLittle, "test_labels_are_as_described", "not described"),
    (MasksWithNumbers, "test_labels_are_as_described", "torch.float32"),
    (Draws, "test_reading_twice_gives_the_same", "second sight"),
]


@pytest.mark.parametrize(("component", "test", "message"), DATASETS)
def test_datasets(component, test, message):
    described = getattr(component, "described", (DEPTH,))
    catches(held_to(DatasetContract, component, tasks=lambda self: described), test, message)


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
    yield MethodSpec(name="unknown", summary="s", preset={"balancer": {"name": "dwa", "temper": 1}})
    yield MethodSpec(name="mistyped", summary="s", preset={"training": {"epochs": "many"}})
    yield MethodSpec(name="lost", summary="s", preset="mtlcore:there_is_no_such.toml")
    yield MethodSpec(name="mute", preset=fixed)
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
    catches(method("unknown"), "test_the_preset_is_a_configuration", "balancer.temper: unknown")
    catches(method("mistyped"), "test_the_preset_is_a_configuration", "training.epochs")
    catches(method("lost"), "test_the_preset_is_a_configuration", "there_is_no_such.toml")
    catches(method("mute"), "test_it_is_itself", "needs a summary")


def test_heavy_plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "light_plugin.py").write_text("import json\n")
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "late_plugin.py").write_text("def mtl_balancers():\n    import torch\n    yield\n")
    (tmp_path / "broken_plugin.py").write_text("import there_is_no_such_module\n")
    assert_plugin_is_light("light_plugin")
    for heavy in ("heavy_plugin", "late_plugin"):
        with pytest.raises(AssertionError, match="imports torch"):
            assert_plugin_is_light(heavy)
    with pytest.raises(AssertionError, match="there_is_no_such_module"):
        assert_plugin_is_light("broken_plugin")


RECORDS = """
from mtlcore import BalancerSpec, MethodSpec, hookimpl

def explained(*, gain: float = 1.0):
    '''Explained.

    Args:
        gain: factor.
    '''

def silent(*, gain: float = 1.0, loss: float = 1.0):
    pass

@hookimpl
def mtl_{kind}():
    yield {record}
"""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('BalancerSpec(name="x", summary="s", target=explained)', None),
        ('MethodSpec(name="x", summary="s", preset={})', None),
        ('BalancerSpec(name="x", target=explained)', "needs a summary"),
        ('BalancerSpec(name="x", summary="s", target=silent)', "gain, loss are"),
        ('BalancerSpec(name="x", summary="s", target="json:nothing")', "cannot load target"),
        ('MethodSpec(name="x", summary="s", preset="json:x.toml")', "cannot read preset"),
        ("from ()", "no hook that yields"),
    ],
)
def test_plugins_that_are_not_whole(tmp_path, monkeypatch, record, message):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"records_{abs(hash(record))}"
    kind = "methods" if "MethodSpec" in record else "balancers"
    text = RECORDS.replace("{kind}", kind).replace("{record}", record)
    (tmp_path / f"{name}.py").write_text(text)
    if message is None:
        assert_plugin_is_whole(name)
        return
    with pytest.raises(AssertionError, match=message):
        assert_plugin_is_whole(name)


def test_a_good_loss_passes():
    passes(held_to(LossContract, L1, task=DEPTH))


@pytest.mark.parametrize(
    ("contract", "faults"),
    [
        (BackboneContract, BACKBONES),
        (HeadContract, HEADS),
        (LossContract, LOSSES),
        (ScalarLossContract, SCALAR_LOSSES),
        (CrossTaskLossContract, CROSS_TASK_LOSSES),
        (MetricContract, METRICS),
        (LossBalancerContract, LOSS_BALANCERS),
        (GramianBalancerContract, GRAMIAN_BALANCERS),
        (GradientBalancerContract, GRADIENT_BALANCERS),
        (EpisodeSamplerContract, EPISODE_SAMPLERS),
        (OptimizerContract, OPTIMIZERS),
        (DatasetContract, DATASETS),
    ],
)
def test_everything_that_a_contract_tests_catches_something(contract, faults):
    tests = {name for name in dir(contract) if name.startswith("test_")}
    assert {test for _, test, _ in faults} == tests
