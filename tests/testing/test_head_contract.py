"""Heads that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
from torch import nn

from mtlcore.models import Head
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.segnet import initialise
from mtlcore.testing import HeadContract


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


class GroupsANewTensor(ConvHead):
    def parameter_groups(self):
        return [{"params": [nn.Parameter(self.output.weight.detach())], "lr": 0.1}]


class HasAFrozenLayer(ConvHead):
    """As a good head may: no gradient is asked for there, and it is not drawn anew."""

    def __init__(self, task, features):
        super().__init__(task, features)
        self.scale = nn.Parameter(nn.init.ones_(self.output.bias.new_empty(1)), requires_grad=False)

    def forward(self, features):
        return super().forward(features) * self.scale


class GrowsWithSteps(ConvHead):
    steps = 0

    def forward(self, features):
        return (1 + self.steps) * super().forward(features)

    def after_step(self, context):
        self.steps += 1


HEADS = [
    (GrowsWithSteps, "test_state_comes_back", "predicts something else"),
    (GroupsANewTensor, "test_its_groups_are_of_its_own_parameters", "somebody else"),
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
def test_heads(component, test, message, held_to, catches):
    catches(held_to(HeadContract, component), test, message)


def test_what_requires_no_gradient_is_left_alone(held_to, passes):
    passes(held_to(HeadContract, HasAFrozenLayer))


def test_every_check_catches_something(catch_all):
    catch_all(HeadContract, HEADS)
