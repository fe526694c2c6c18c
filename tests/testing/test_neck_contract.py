"""Necks that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
from torch import nn

from mtlcore.standard.decoders import SegFormerMLP
from mtlcore.testing import NeckContract


class Good(SegFormerMLP):
    def __init__(self, features):
        super().__init__(features, channels=6)


class AnnouncesOtherChannels(Good):
    def __init__(self, features):
        super().__init__(features)
        self.out_channels = (7,)


class AnnouncesAnotherStride(Good):
    def __init__(self, features):
        super().__init__(features)
        self.strides = (2 * self.strides[0],)


class ReturnsAList(Good):
    def forward(self, features):
        return list(super().forward(features))


class PointsBeyond(Good):
    main_map = 1


class ForgetsToReset(Good):
    def reset_parameters(self):
        self.linear[0].reset_parameters()


class EditsTheFeatures(Good):
    def forward(self, features):
        return super().forward([x.relu_() for x in features])


class HasASpareLayer(Good):
    def __init__(self, features):
        super().__init__(features)
        self.spare = nn.Linear(2, 2)


class NamesWhatIsNotItsOwn(Good):
    def last_parameters(self):
        return nn.Linear(2, 2).parameters()


class NamesWhatIsIdle(HasASpareLayer):
    unreached = ("spare.",)

    def last_parameters(self):
        return self.spare.parameters()


class ResetsToZero(Good):
    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class CutsTheGraph(Good):
    def forward(self, features):
        return super().forward([x.detach() for x in features])


class KeepsACount(Good):
    passes = 0

    def forward(self, features):
        self.passes += 1
        return super().forward(features)

    def get_extra_state(self):
        return {"passes": self.passes}

    def set_extra_state(self, state):
        self.passes = state["passes"]


class Forgets(Good):
    scale = 1.0

    def forward(self, features):
        (maps,) = super().forward(features)
        if self.training:
            self.scale = 2 * self.scale
        return (maps * self.scale,)


class GroupsANewTensor(Good):
    def parameter_groups(self):
        return [{"params": [nn.Parameter(self.join[0].weight.detach())], "lr": 0.1}]


class CentresTheBatch(Good):
    def forward(self, features):
        (maps,) = super().forward(features)
        return (maps - maps.mean(0, keepdim=True),)


NECKS = [
    (AnnouncesOtherChannels, "test_maps_are_as_announced", "announced are"),
    (AnnouncesAnotherStride, "test_maps_are_as_announced", "announced are"),
    (ReturnsAList, "test_maps_are_as_announced", "not a tuple"),
    (PointsBeyond, "test_maps_are_as_announced", "no map 1"),
    (ForgetsToReset, "test_reset_draws_every_parameter_anew", "leaves"),
    (ResetsToZero, "test_reset_is_starting_anew", "the same values each time"),
    (CutsTheGraph, "test_the_features_are_reached", "learnt from"),
    (KeepsACount, "test_a_forward_pass_changes_buffers_only", "extra_state"),
    (Forgets, "test_state_comes_back", "restored"),
    (GroupsANewTensor, "test_its_groups_are_of_its_own_parameters", "somebody else"),
    (EditsTheFeatures, "test_the_features_stay_as_they_were", "edited in place"),
    (HasASpareLayer, "test_every_parameter_is_reached", "spare"),
    (NamesWhatIsNotItsOwn, "test_last_parameters_are_its_own", "none of the neck's"),
    (NamesWhatIsIdle, "test_last_parameters_are_its_own", "no map depends"),
    (CentresTheBatch, "test_samples_do_not_see_one_another_in_evaluation", "depends on its batch"),
]


@pytest.mark.parametrize(("component", "test", "message"), NECKS)
def test_necks(component, test, message, held_to, catches):
    catches(held_to(NeckContract, component), test, message)


def test_a_good_neck_passes(held_to, passes):
    passes(held_to(NeckContract, Good))


def test_every_check_catches_something(catch_all):
    catch_all(NeckContract, NECKS)
