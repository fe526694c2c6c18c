"""The pointwise, the DeepLab and the linear head."""

from __future__ import annotations

import pytest
import torch

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import count_parameters
from mtlcore.plugins import settings_of
from mtlcore.standard.heads import DeepLabHead, LinearHead, PointwiseHead
from mtlcore.tasks import Task
from mtlcore.testing import HeadContract

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=5)
CLASSES = Task(name="classes", kind="classification", channels=5)


class TestPointwise(HeadContract):
    task = SEGMENTATION

    def make(self, task, features):
        return PointwiseHead(task, features)


class TestDeepLab(HeadContract):
    task = SEGMENTATION

    def make(self, task, features):
        return DeepLabHead(task, features, rates=(1, 2), channels=8)


class TestLinearOnMaps(HeadContract):
    task = CLASSES

    def make(self, task, features):
        return LinearHead(task, features)


class TestLinearOnVectors(TestLinearOnMaps):
    task = Task(name="values", kind="regression", channels=2)
    features = (FeatureInfo((6,), (1,)),)

    def _maps(self, features):
        return tuple(torch.randn(2, c) for c in features.channels)


@pytest.mark.parametrize(("outputs", "size"), [(41, 16_135_977), (3, 16_126_211), (1, 16_125_697)])
def test_published_size(outputs, size):
    task = Task(name="any", kind="segmentation", channels=outputs)
    with torch.device("meta"):
        head = DeepLabHead(task, FeatureInfo((2048,), (8,)))
    assert count_parameters(head.parameters()) == size == 16_125_440 + 257 * outputs


def test_a_pointwise_head_sees_a_place_of_the_main_map_alone():
    head = PointwiseHead(SEGMENTATION, FeatureInfo((3, 2), (4, 1), main_map=-1))
    assert count_parameters(head.parameters()) == 2 * 5 + 5
    maps = torch.rand(1, 3, 2, 2), torch.rand(1, 2, 8, 8)
    changed = maps[1].clone()
    changed[..., 3, 4] += 1
    moved = (head(maps) != head((maps[0] + 1, changed))).any(1)[0].nonzero().tolist()
    assert moved == [[3, 4]]


def test_rates_reach_as_far_as_they_say():
    head = DeepLabHead(SEGMENTATION, FeatureInfo((3,), (8,)), channels=4).eval()
    impulse = torch.zeros(1, 3, 81, 81)
    impulse[:, :, 40, 40] = 1
    for branch, rate in zip(head.branches[1:], (12, 24, 36), strict=True):
        seen = branch[0](impulse).abs().sum(1)[0].nonzero() - 40
        assert {*map(tuple, seen.tolist())} == {
            (y, x) for y in (-rate, 0, rate) for x in (-rate, 0, rate)
        }


def test_the_whole_map_has_a_say_everywhere():
    head = DeepLabHead(SEGMENTATION, FeatureInfo((3,), (1,)), rates=(1,), channels=4).eval()
    maps = torch.rand(1, 3, 40, 40)
    changed = maps.clone()
    changed[:, :, 0, 0] += 1000
    assert not torch.equal(head([maps])[..., 39, 39], head([changed])[..., 39, 39])


def test_one_sample_cannot_train():
    head = DeepLabHead(SEGMENTATION, FeatureInfo((3,), (2,)), channels=4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        head([torch.rand(1, 3, 8, 8)])
    assert head.eval()([torch.rand(1, 3, 8, 8)]).shape == (1, 5, 16, 16)


@pytest.mark.parametrize("settings", [{"rates": (0,)}, {"channels": 0}, {"dropout": 1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match="'segmentation'"):
        DeepLabHead(SEGMENTATION, FeatureInfo((3,), (2,)), **settings)


def test_deeplab_refuses_single_labels():
    with pytest.raises(UsageError, match="'classes' has one label per sample"):
        DeepLabHead(CLASSES, FeatureInfo((3,), (2,)))


def test_linear_reads_the_mean_of_a_map():
    head = LinearHead(CLASSES, FeatureInfo((6,), (4,)))
    maps = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(head([maps]), head([maps.mean((2, 3))]))


def test_linear_refuses_maps_of_labels():
    with pytest.raises(UsageError, match="'segmentation' has a value per pixel"):
        LinearHead(SEGMENTATION, FeatureInfo((6,), (4,)))


def test_settings_are_explained():
    names = [s.name for s in settings_of(DeepLabHead) if s.meaning]
    assert names == ["rates", "channels", "dropout"]
