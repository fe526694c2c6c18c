"""All six keep what mtlcore asks of a loss between tasks, and so do their variants."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.features import FeatureInfo
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, CrossTaskLossContract
from mtlcore_mtpsl.consistency import Consistency
from mtlcore_mtpsl.contrast import Contrastive, Discriminator
from mtlcore_mtpsl.maps import DirectMap, PerceptualMap
from mtlcore_mtpsl.mtpsl import MTPSL

TWO_VIEWS = (0, 0, 0, 1, 1, 1)
MANY_KINDS = (
    *TINY_TASKS,
    Task(name="edges", kind="edges", channels=1),
    Task(name="inverse_depth", kind="inverse-depth", channels=1),
    Task(name="albedo", kind="albedo", channels=3),
    Task(name="scene", kind="classification", channels=4),
)


class TestMTPSL(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MTPSL:
        return MTPSL(tasks, features)


class TestMTPSLAsInThePaper(CrossTaskLossContract):
    size = (40, 64)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MTPSL:
        return MTPSL(
            tasks, features, regulariser=1.0, normalisation="mean", code="different", views=1
        )


class TestMTPSLByResNet(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MTPSL:
        return MTPSL(tasks, features, encoder="resnet-18", code="different", views=1)


class TestMTPSLWithoutConditioningOfManyKinds(CrossTaskLossContract):
    tasks = MANY_KINDS
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MTPSL:
        return MTPSL(tasks, features, code="none", width=1 / 32)


class TestConsistency(CrossTaskLossContract):
    tasks = MANY_KINDS
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> Consistency:
        return Consistency(tasks, features)


class TestDirectMap(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> DirectMap:
        return DirectMap(tasks, features)


class TestDirectMapOfManyKinds(CrossTaskLossContract):
    tasks = MANY_KINDS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> DirectMap:
        return DirectMap(tasks, features, views=1)


class TestPerceptualMap(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> PerceptualMap:
        return PerceptualMap(tasks, features)


class TestContrastive(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> Contrastive:
        return Contrastive(tasks, features, margin=0.9)


class TestRelativeContrastive(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> Contrastive:
        return Contrastive(tasks, features, form="relative", margin=0.9)


class TestDiscriminator(CrossTaskLossContract):
    views = TWO_VIEWS

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> Discriminator:
        return Discriminator(tasks, features)
