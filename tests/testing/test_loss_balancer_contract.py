"""Balancers of losses that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.balancing import LossBalancer
from mtlcore.testing import LossBalancerContract


class Plain(LossBalancer):
    def transform(self, losses, context):
        return dict(losses)


class WeighsAbsentTasks(Plain):
    def transform(self, losses, context):
        zero = next(iter(losses.values())) * 0
        return {task: losses.get(task, zero) for task in context.tasks}


class EditsLosses(Plain):
    def transform(self, losses, context):
        return {task: loss.data.mul_(2) + loss for task, loss in losses.items()}


class CountsInTransform(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def transform(self, losses, context):
        self.steps += 1
        return {task: loss / self.steps for task, loss in losses.items()}


class LosesItsState(Plain):
    steps = 1

    def transform(self, losses, context):
        return {task: loss / self.steps for task, loss in losses.items()}

    def after_step(self, context):
        self.steps += 1


class IgnoresTheGenerator(Plain):
    def transform(self, losses, context):
        weights = torch.rand(len(losses)).tolist()
        return {t: w * x for (t, x), w in zip(losses.items(), weights, strict=True)}


class DividesBySquares(Plain):
    def transform(self, losses, context):
        return {task: loss / loss.detach() ** 6 for task, loss in losses.items()}


class ForgetsATask(Plain):
    def transform(self, losses, context):
        return {t: x.detach() if t == "depth" else x for t, x in losses.items()}


class DecaysEverybody(Plain):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.key, torch.ones(()))

    def after_step(self, context):
        for buffer in self.buffers():
            buffer.mul_(0.9)


class KeepsWeightsByName(Plain):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class WeighsByLastLosses(Plain):
    """Divides by the losses of the step before, which a skipped step must not change."""

    before = {}

    def transform(self, losses, context):
        weighed = {t: x / self.before.get(t, 1.0) for t, x in losses.items()}
        self.before = {t: float(x.detach()) for t, x in losses.items()}
        return weighed

    def get_extra_state(self):
        return self.before

    def set_extra_state(self, state):
        self.before = state


class ByMetric(Plain):
    """Divides by the validation losses, and forgets them when the run is resumed."""

    found = {}

    def transform(self, losses, context):
        return {t: x / self.found.get(t, {"loss": 1.0})["loss"] for t, x in losses.items()}

    def after_evaluation(self, metrics):
        self.found = metrics


class GroupsOnce(Plain):
    """Keeps an iterator, which is empty when the optimizer is built a second time."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.groups = iter([{"params": [self.scale], "lr": 0.1}])

    def parameter_groups(self):
        return self.groups


class AsksForValidation(Plain):
    validation = "val"


LOSS_BALANCERS = [
    (AsksForValidation, "test_batches_are_as_announced", "only a balancer of Gramians"),
    (GroupsOnce, "test_its_groups_are_of_its_own_parameters", "when asked again"),
    (WeighsAbsentTasks, "test_every_present_task_keeps_its_loss", "out"),
    (EditsLosses, "test_losses_stay_as_they_were", "was edited"),
    (CountsInTransform, "test_state_moves_in_after_step_only", "transform changed"),
    (LosesItsState, "test_state_comes_back", "not part of its state"),
    (ByMetric, "test_state_comes_back", "not part of its state"),
    (ByMetric, "test_evaluations_may_lack_values", "become"),
    (IgnoresTheGenerator, "test_randomness_comes_from_the_context", "global generator"),
    (DividesBySquares, "test_finite_for_tiny_and_large_losses", "become"),
    (ForgetsATask, "test_gradients_reach_every_loss", "depth"),
    (DecaysEverybody, "test_absent_tasks_leave_no_trace", "in a step without it"),
    (DecaysEverybody, "test_preparing_again_keeps_what_was_learnt", "in prepare"),
    (KeepsWeightsByName, "test_tasks_may_have_any_name", "type"),
    (WeighsByLastLosses, "test_state_moves_in_after_step_only", "transform changed"),
]


@pytest.mark.parametrize(("component", "test", "message"), LOSS_BALANCERS)
def test_loss_balancers(component, test, message, held_to, catches):
    catches(held_to(LossBalancerContract, component), test, message)


def test_every_check_catches_something(catch_all):
    catch_all(LossBalancerContract, LOSS_BALANCERS)
