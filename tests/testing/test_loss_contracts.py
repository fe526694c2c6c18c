"""Losses of one task that are wrong on purpose, and the contracts that catch them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.losses import Loss, ScalarLoss
from mtlcore.standard.losses import L1
from mtlcore.tasks import Task
from mtlcore.testing import LossContract, ScalarLossContract

DEPTH = Task(name="depth", kind="depth", channels=1)


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


class HasAScale(PlainLoss):
    def __init__(self, task):
        super().__init__(task)
        self.scale = nn.Parameter(torch.ones(()))

    def elementwise(self, prediction, target):
        return (prediction - target).abs().mean(1) * self.scale


class ThawsItsScale(HasAScale):
    def parameter_groups(self):
        return [{"params": [self.scale.requires_grad_()], "lr": 0.1}]


LOSSES = [
    (ThawsItsScale, "test_its_groups_are_of_its_own_parameters", "frozen parameters learn again"),
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
def test_losses(component, test, message, held_to, catches):
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


class SchedulesByName(PlainScalar):
    def __init__(self, task):
        super().__init__(task)
        self.scale = nn.Parameter(torch.ones(()))

    def parameter_groups(self):
        return [{"params": [self.scale], "schedule": "cosine"}]


SCALAR_LOSSES = [
    (SchedulesByName, "test_its_groups_are_of_its_own_parameters", "no mtlcore.optimizers"),
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
def test_scalar_losses(component, test, message, held_to, catches):
    catches(held_to(ScalarLossContract, component, task=DEPTH), test, message)


def test_a_good_scalar_loss_passes(held_to, passes):
    passes(held_to(ScalarLossContract, PlainScalar, task=DEPTH))


def test_a_good_loss_passes(held_to, passes):
    passes(held_to(LossContract, L1, task=DEPTH))


@pytest.mark.parametrize(
    ("contract", "faults"), [(LossContract, LOSSES), (ScalarLossContract, SCALAR_LOSSES)]
)
def test_every_check_catches_something(contract, faults, catch_all):
    catch_all(contract, faults)
