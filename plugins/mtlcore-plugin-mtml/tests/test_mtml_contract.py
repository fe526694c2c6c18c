"""Sampler, optimizer and head keep what mtlcore asks of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.learner import Learner
from mtlcore.tasks import Task
from mtlcore.testing import EpisodeSamplerContract, HeadContract, OptimizerContract, tiny_batch
from mtlcore_mtml.bilevel import MTML
from mtlcore_mtml.heads import RepeatedDeepLab
from mtlcore_mtml.powerset import TaskPowerset


class TestEverySubset(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> TaskPowerset:
        return TaskPowerset(tasks, splits)


class TestSomeSubsets(EpisodeSamplerContract):
    tasks = ("first", "second", "third", "fourth", "fifth")

    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> TaskPowerset:
        return TaskPowerset(tasks, splits, episodes=2, query=0.4)


class _WithEpisodes(OptimizerContract):
    """Plans with more than one episode."""

    def plan(self, number: int, tasks: Sequence[str], absent: Sequence[str] = ()) -> LoadedPlan:
        batches = tuple(tiny_batch(seed=2 * number + i, absent=absent) for i in range(2))
        subsets = [tuple(tasks), *(tuple(t for t in tasks if t != gone) for gone in tasks)]
        return LoadedPlan(batches, tuple(Episode(chosen, 0, 1) for chosen in subsets if chosen))


class TestFirstOrder(_WithEpisodes):
    def make(self, learner: Learner) -> MTML:
        return MTML(learner, weight_decay=0.1, inner_lr=0.05)


class TestSecondOrder(_WithEpisodes):
    def make(self, learner: Learner) -> MTML:
        return MTML(learner, weight_decay=0.1, inner_lr=0.05, inner_steps=2, second_order=True)


class TestAsReleased(_WithEpisodes):
    groups_count = False  # inner steps stay, at their own rate

    def make(self, learner: Learner) -> MTML:
        return MTML(learner, weight_decay=0.1, inner_lr=0.05, restore=False)


class TestHeadsInside(_WithEpisodes):
    def make(self, learner: Learner) -> MTML:
        return MTML(learner, weight_decay=0.1, inner_lr=0.05, inner_scope="heads+norm", clip=1.0)


class TestEdgeHead(HeadContract):
    task = Task(name="edges", kind="edges", channels=1)

    def make(self, task: Task, features: FeatureInfo) -> RepeatedDeepLab:
        return RepeatedDeepLab(task, features, channels=4)


class TestEdgeHeadOfSeveralChannels(HeadContract):
    def make(self, task: Task, features: FeatureInfo) -> RepeatedDeepLab:
        return RepeatedDeepLab(task, features, channels=4, outputs=2)


def test_the_head_answers_with_the_mean_of_its_outputs() -> None:
    """Channel by channel: those of the first come before those of the second."""
    task = Task(name="normals", kind="normals", channels=3)
    head = RepeatedDeepLab(task, FeatureInfo((6,), (4,)), channels=4, outputs=2).eval()
    features = [torch.randn(1, 6, 5, 5)]
    first, second, third, fourth, fifth, sixth = head.deeplab(features).unbind(1)
    expected = torch.stack([first + second, third + fourth, fifth + sixth], dim=1) / 2
    torch.testing.assert_close(head(features), expected)


def test_the_heads_outputs_must_be_some() -> None:
    task = Task(name="edges", kind="edges", channels=1)
    with pytest.raises(UsageError, match="outputs 0"):
        RepeatedDeepLab(task, FeatureInfo((6,), (4,)), outputs=0)
