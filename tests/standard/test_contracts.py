"""mtlcore's own components keep the contracts that plugins are held to."""

from __future__ import annotations

import sys

import pytest
import torch

import mtlcore.testing
from mtlcore.data import Dataset
from mtlcore.datasets.rooms import Rooms
from mtlcore.standard import balancers, optimizers
from mtlcore.standard.gramian_balancers import UnitNorm
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.losses import L1, BinaryCrossEntropy, Cosine, CrossEntropy
from mtlcore.standard.metrics import DepthMetric, EdgesMetric, NormalsMetric, SegmentationMetric
from mtlcore.standard.samplers import Joint
from mtlcore.standard.segnet import SegNet
from mtlcore.tasks import Task
from mtlcore.testing import (
    BackboneContract,
    DatasetContract,
    EpisodeSamplerContract,
    GramianBalancerContract,
    HeadContract,
    LossBalancerContract,
    LossContract,
    MetricContract,
    OptimizerContract,
    TinyBackbone,
    assert_plugin_is_light,
)

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=5)
CLASSES = Task(name="classes", kind="classification", channels=5)
DEPTH = Task(name="depth", kind="depth", channels=1)
VALUES = Task(name="values", kind="regression", channels=3)
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
LABELS = Task(name="labels", kind="multilabel", channels=4)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestSegNet(BackboneContract):
    def make(self, tasks):
        return SegNet(tasks, width=1 / 16)


class TestTinyBackbone(BackboneContract):
    def make(self, tasks):
        return TinyBackbone(tasks)


class TestSegmentationHead(HeadContract):
    def make(self, task, features):
        return ConvHead(task, features)


class TestDepthHead(TestSegmentationHead):
    task = DEPTH


class TestNormalsHead(TestSegmentationHead):
    task = NORMALS


class TestEdgesHead(TestSegmentationHead):
    task = EDGES


class TestCrossEntropy(LossContract):
    task = SEGMENTATION

    def make(self, task):
        return CrossEntropy(task)


class TestWeightedCrossEntropy(LossContract):
    task = SEGMENTATION

    def make(self, task):
        return CrossEntropy(task, class_weights=(0.5, 1.0, 2.0, 0.1, 3.0))


class TestClassification(TestCrossEntropy):
    task = CLASSES


class TestL1(LossContract):
    task = DEPTH

    def make(self, task):
        return L1(task)


class TestRegression(TestL1):
    task = VALUES


class TestCosine(LossContract):
    task = NORMALS

    def make(self, task):
        return Cosine(task)


class TestBinaryCrossEntropy(LossContract):
    task = EDGES

    def make(self, task):
        return BinaryCrossEntropy(task)


class TestMultilabel(TestBinaryCrossEntropy):
    task = LABELS


class TestSegmentationMetric(MetricContract):
    task = SEGMENTATION

    def make(self, task):
        return SegmentationMetric(task)


class TestClassificationMetric(TestSegmentationMetric):
    task = CLASSES


class TestDepthMetric(MetricContract):
    task = DEPTH

    def make(self, task):
        return DepthMetric(task)


class TestNormalsMetric(MetricContract):
    task = NORMALS

    def make(self, task):
        return NormalsMetric(task)


class TestEdgesMetric(MetricContract):
    task = EDGES

    def make(self, task):
        return EdgesMetric(task)


class TestEqual(LossBalancerContract):
    def make(self):
        return balancers.Equal()


class TestFixed(LossBalancerContract):
    names_tasks = True

    def make(self):
        return balancers.Fixed(weights={"depth": 0.3, "segmentation": 2.0})


class TestUncertainty(LossBalancerContract):
    def make(self):
        return balancers.Uncertainty()


class TestRevisedUncertainty(LossBalancerContract):
    def make(self):
        return balancers.Uncertainty(form="revised", initial=-0.5)


class TestUncertaintyByKind(LossBalancerContract):
    def make(self):
        return balancers.Uncertainty(form="by-kind")


class TestDWA(LossBalancerContract):
    def make(self):
        return balancers.DWA()


class TestWindowedDWA(LossBalancerContract):
    def make(self):
        return balancers.DWA(window=2)


class TestUnitNorm(GramianBalancerContract):
    def make(self):
        return UnitNorm()


class TestUnitNormOfFeatures(GramianBalancerContract):
    def make(self) -> UnitNorm:
        return UnitNorm(scope="features")


class TestJoint(EpisodeSamplerContract):
    def make(self, tasks, splits):
        return Joint(tasks, splits)


class TestAdam(OptimizerContract):
    def make(self, learner):
        return optimizers.adam(learner, lr=1e-2, weight_decay=0.1)


class TestAdamW(OptimizerContract):
    def make(self, learner):
        return optimizers.adamw(learner, lr=1e-2, weight_decay=0.1)


class TestSGD(OptimizerContract):
    def make(self, learner):
        return optimizers.sgd(learner, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1)


class TestClippedSGD(OptimizerContract):
    def make(self, learner):
        return optimizers.sgd(learner, lr=1e-2, momentum=0.9, clip=0.1)


class TestRooms(DatasetContract):
    splits = ("train", "val", "test")

    def make(self, split: str) -> Dataset:
        return Rooms(None, split, samples=3, size=(24, 32))

    def tasks(self):
        return Rooms.describe(None)


def test_the_standard_plugin_is_light():
    assert_plugin_is_light("mtlcore.standard.plugin")


def test_the_contracts_are_imported_when_asked_for():
    assert_plugin_is_light("mtlcore.testing")
    assert set(mtlcore.testing.__all__) <= set(dir(mtlcore.testing))
    for name in mtlcore.testing.__all__:
        assert getattr(mtlcore.testing, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mtlcore.testing.nonsense


def test_the_contracts_do_not_need_pytest():
    for name in mtlcore.testing.__all__:
        getattr(mtlcore.testing, name)
    own = [m for name, m in sys.modules.items() if name.startswith("mtlcore.testing")]
    assert not [m for m in own if hasattr(m, "pytest")]
