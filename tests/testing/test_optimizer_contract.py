"""Optimizers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import attrs
import pytest
import torch

from mtlcore.optimizers import GradientDescent, Schedule, StepReport
from mtlcore.testing import OptimizerContract


def momentum(groups):
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)


class Momentum(GradientDescent):
    def __init__(self, learner, make=momentum):
        super().__init__(learner, make, Schedule(), None)


class KeepsPoisonedBuffers(Momentum):
    def __init__(self, learner):
        super().__init__(learner)
        self._update._buffers = self._update._saved = []


class KeepsPoisonedGradients(Momentum):
    def __init__(self, learner):
        super().__init__(learner)
        self._update._clip_gradients = lambda: True


class LosesItsMoments(Momentum):
    def load_state_dict(self, state):
        pass


class RemembersForgotten(Momentum):
    def reset_state(self, parameters):
        pass


class ForgetsEverything(Momentum):
    def reset_state(self, parameters):
        self._update._torch.state.clear()


class FillingIn(torch.optim.SGD):
    """Takes a gradient of zero where there is none, so that momentum and decay go on."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().step(closure)


class MovesAbsentTasks(Momentum):
    def __init__(self, learner):
        super().__init__(learner, lambda groups: FillingIn(groups, lr=0.01, weight_decay=0.1))


class DoesNothing(Momentum):
    def __init__(self, learner):
        super().__init__(learner, lambda groups: torch.optim.SGD(groups, lr=0.0))


class SavesNoMoments(Momentum):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class ForgetsThePlateau(Momentum):
    def __init__(self, learner):
        schedule = Schedule(name="plateau", patience=3)
        GradientDescent.__init__(self, learner, momentum, schedule, None)

    def after_evaluation(self, metrics):
        super().after_evaluation(metrics)
        self._kept = getattr(self, "_kept", None) or self.state_dict()["plateau"]

    def state_dict(self):
        fresh = {"evaluations": [], "best": 0, "waited": 0, "falls": 0}
        return {**super().state_dict(), "plateau": fresh}


class ReadsOneLoss(Momentum):
    def after_evaluation(self, metrics):
        self._update._plateau.update(metrics)


class CountsSkippedSteps(Momentum):
    steps = 0

    def step(self, learner, plan):
        self.steps += 1
        return super().step(learner, plan)

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}


class TellsBalancersAlways(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        if report.skipped:
            learner.balancing.after_step(learner.context)
        return report


class TellsBalancersTwice(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        learner.balancing.after_step(learner.context)
        return report


class TellsNobodyElse(Momentum):
    def __init__(self, learner):
        super().__init__(learner)
        self._update._listeners = []


class TellsOfSkippedSteps(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        if report.skipped:
            for loss in learner.cross_task_losses:
                loss.after_step(learner.context)
        return report


class SumsByItself:
    """Learns from the plain sum, whatever the balancer says."""

    def __init__(self, learner):
        self.torch = momentum(learner.parameter_groups())

    def step(self, learner, plan):
        found = learner(plan.batches[0], plan.episodes[0].tasks)
        self.torch.zero_grad()
        torch.stack([*found.balanced.values()]).sum().backward()
        self.torch.step()
        learner.context.losses = {task: float(loss.detach()) for task, loss in found.raw.items()}
        learner.balancing.after_step(learner.context)
        return StepReport(losses=learner.context.losses)

    def state_dict(self):
        return self.torch.state_dict()


class TakesTasksOfTheFirstStep(Momentum):
    """Keeps out of training what had no gradient in the first step."""

    late = None

    def step(self, learner, plan):
        before = [p.detach().clone() for p in learner.parameters()]
        report = super().step(learner, plan)
        moved = [not torch.equal(p, b) for p, b in zip(learner.parameters(), before, strict=True)]
        self.late = [not m for m in moved] if self.late is None else self.late
        for late, p, kept in zip(self.late, learner.parameters(), before, strict=True):
            if late:
                p.data.copy_(kept)
        return report


class IgnoresGroups(Momentum):
    def __init__(self, learner):
        def make(groups):
            return momentum([{"params": group["params"]} for group in groups])

        super().__init__(learner, make)


class DecaysEverything(Momentum):
    def step(self, learner, plan):
        report = super().step(learner, plan)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.mul_(0.99)
        return report


class MixesBatches(Momentum):
    """Calls two batches independent that are one."""

    def step(self, learner, plan):
        batches = (plan.batches[0],) * len(plan.batches)
        return super().step(learner, attrs.evolve(plan, batches=batches))


class LearnsFromValidation(Momentum):
    """Takes the validation batch for a part of the first one."""

    def step(self, learner, plan):
        return super().step(
            learner, attrs.evolve(plan, episodes=(*plan.episodes, *plan.validation))
        )


class HidesTheValidation(Momentum):
    def step(self, learner, plan):
        finish = self._update.finish
        self._update.finish = lambda learner, reevaluate, validation: finish(learner, reevaluate)
        return super().step(learner, plan)


OPTIMIZERS = [
    (MixesBatches, "test_batches_stay_apart", "both batches have the same"),
    (LearnsFromValidation, "test_batches_stay_apart", "learns from the validation batch"),
    (HidesTheValidation, "test_batches_stay_apart", "cannot compare the validation batch"),
    (IgnoresGroups, "test_groups_of_components_count", "learning rate of 0 moves"),
    (DecaysEverything, "test_frozen_parts_stay_as_they_are", "frozen tensors changed"),
    (
        KeepsPoisonedBuffers,
        "test_a_step_that_is_not_finite_changes_nothing",
        "an infinite input: the skipped step changed .*running_mean",
    ),
    (
        KeepsPoisonedGradients,
        "test_a_step_that_is_not_finite_changes_nothing",
        "NaN: the step is not reported",
    ),
    (LosesItsMoments, "test_state_comes_back", "restored"),
    (RemembersForgotten, "test_forgetting_is_starting_anew", "should be forgotten"),
    (ForgetsEverything, "test_forgetting_a_head_leaves_the_others", "changes the update"),
    (MovesAbsentTasks, "test_absent_tasks_stay_as_they_are", "absent task changed"),
    (DoesNothing, "test_a_step_learns", "do not learn"),
    (SavesNoMoments, "test_state_comes_back", "restored"),
    (ReadsOneLoss, "test_state_comes_back", "must be real number"),
    (ForgetsThePlateau, "test_state_comes_back", "restored"),
    (
        CountsSkippedSteps,
        "test_a_step_that_is_not_finite_changes_nothing",
        "the skipped step changed .*optimizer.steps",
    ),
    (
        TellsBalancersAlways,
        "test_a_step_that_is_not_finite_changes_nothing",
        "the skipped step changed .*learner",
    ),
    (TellsBalancersTwice, "test_balancers_hear_of_every_step", "called 2 times"),
    (TellsNobodyElse, "test_parts_hear_of_every_step", "called 0 times"),
    (TellsOfSkippedSteps, "test_parts_hear_of_every_step", "after a skipped step"),
    (SumsByItself, "test_balancers_decide", "the same update"),
    (SumsByItself, "test_a_step_that_is_not_finite_changes_nothing", "not reported"),
    (TakesTasksOfTheFirstStep, "test_tasks_may_come_late", "comes late does not learn"),
]


@pytest.mark.parametrize(("component", "test", "message"), OPTIMIZERS)
def test_optimizers(component, test, message, held_to, catches):
    catches(held_to(OptimizerContract, component), test, message)


def test_a_good_optimizer_passes(held_to, passes):
    passes(held_to(OptimizerContract, Momentum))


def test_every_check_catches_something(catch_all):
    catch_all(OptimizerContract, OPTIMIZERS)
