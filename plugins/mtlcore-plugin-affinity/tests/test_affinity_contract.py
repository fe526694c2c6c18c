"""What mtlcore asks of every optimizer, every method and every plugin."""

from __future__ import annotations

from functools import partial

from mtlcore.learner import Learner
from mtlcore.optimizers import Optimizer
from mtlcore.standard.optimizers import adamw
from mtlcore.testing import (
    MethodContract,
    OptimizerContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_affinity.optimizer import Affinity


class TestAffinity(OptimizerContract):
    def make(self, learner: Learner) -> Optimizer:
        return Affinity(learner, optimizer=partial(adamw, lr=1e-2), every=1, rate=0.1)


class TestAffinityAtTheRateOfTraining(OptimizerContract):
    def make(self, learner: Learner) -> Optimizer:
        return Affinity(learner, optimizer=partial(adamw, lr=1e-2), every=1)


class TestTag(MethodContract):
    method = "tag"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_affinity.plugin")
    assert_plugin_is_whole("mtlcore_affinity.plugin")
