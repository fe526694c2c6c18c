"""Necks that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
from torch import nn

from mtlcore.models import Neck
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
    (EditsTheFeatures, "test_the_features_stay_as_they_were", "edited in place"),
    (HasASpareLayer, "test_every_parameter_is_reached", "spare"),
    (NamesWhatIsNotItsOwn, "test_last_parameters_are_its_own", "none of the neck's"),
    (NamesWhatIsIdle, "test_last_parameters_are_its_own", "no map depends"),
    (CentresTheBatch, "test_samples_do_not_see_one_another_in_evaluation", "depends on its batch"),
]


def contract_of(kind: type[Neck]) -> NeckContract:
    class Contract(NeckContract):
        def make(self, features):
            return kind(features)

    return Contract()


@pytest.mark.parametrize(("kind", "check", "said"), NECKS, ids=lambda x: getattr(x, "__name__", ""))
def test_it_is_caught(kind: type[Neck], check: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        getattr(contract_of(kind), check)()


@pytest.mark.parametrize("check", [n for n in dir(NeckContract) if n.startswith("test_")])
def test_a_good_one_passes(check: str) -> None:
    getattr(contract_of(Good), check)()
