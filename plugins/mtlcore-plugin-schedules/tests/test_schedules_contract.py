"""What mtlcore asks of every episode sampler, every method and every plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlcore.episodes import EpisodeSampler
from mtlcore.testing import (
    EpisodeSamplerContract,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_schedules.active import Active
from mtlcore_schedules.stop_and_go import StopAndGo
from mtlcore_schedules.trend import TrendStopping


class TestActive(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> EpisodeSampler:
        return Active(tasks, splits, window=3)


class TestStopAndGo(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> EpisodeSampler:
        return StopAndGo(tasks, splits, patience=1)


class TestTrendStopping(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> EpisodeSampler:
        return TrendStopping(tasks, splits, window=2, threshold=0.1)


class TestActiveMethod(MethodContract):
    method = "active"


class TestStopAndGoMethod(MethodContract):
    method = "stop-and-go"


class TestTcdcnMethod(MethodContract):
    method = "tcdcn"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_schedules.plugin")
    assert_plugin_is_whole("mtlcore_schedules.plugin")
