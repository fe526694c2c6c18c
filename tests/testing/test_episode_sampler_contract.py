"""Episode samplers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import attrs
import pytest
import torch

from mtlcore.episodes import BatchPlan, Episode, StepPlan, StepSampler
from mtlcore.standard.samplers import Joint
from mtlcore.testing import EpisodeSamplerContract


class GlobalShuffle(Joint):
    def epoch(self, tasks, batch_size, generator):
        yield from super().epoch(tasks, batch_size, torch.default_generator)


class OneStepTooMany(Joint):
    def steps(self, batch_size):
        return super().steps(batch_size) + 1


class AlwaysTheSame(Joint):
    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks, batch_size, torch.Generator().manual_seed(0))


class EveryTask(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, splits)
        self.tasks = tasks

    def epoch(self, tasks, batch_size, generator):
        return super().epoch(self.tasks, batch_size, generator)


class QueriesItsSupport(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(plan.batches, (Episode(tuple(tasks), support=0, query=0),))


class OutOfRange(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, {"train": splits["train"] + 1})


class PairsOnly(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield plan if len(tasks) > 1 else StepPlan(plan.batches, ())


class OneBatchForAll(Joint):
    def steps(self, batch_size):
        return 1

    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks, 10**6, generator)


class OneSeedForAll(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(tuple(attrs.evolve(b, seed=0) for b in plan.batches), plan.episodes)


class LearnsFromValidation(Joint):
    def __init__(self, tasks, splits):
        super().__init__(tasks, {"train": splits["val"]})

    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            batches = tuple(attrs.evolve(batch, split="val") for batch in plan.batches)
            yield StepPlan(batches, plan.episodes)


class NamesABatchThatIsNotThere(Joint):
    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(plan.batches, (Episode(tuple(tasks), support=0, query=1),))


class FirstTaskAlone(Joint):
    def epoch(self, tasks, batch_size, generator):
        return super().epoch(tasks[:1], batch_size, generator)


class CountsEpochs(Joint):
    """Every other epoch is of one task, whatever its state says."""

    epochs = 0

    def epoch(self, tasks, batch_size, generator):
        self.epochs += 1
        return super().epoch(tasks[: 1 + self.epochs % 2], batch_size, generator)


class Hasty(Joint):
    horizon = 2


class ByLoss(StepSampler):
    """The task with the largest last loss, two steps at a time."""

    horizon = 2

    def __init__(self, tasks, splits):
        self.joint, self.left = Joint(tasks, splits), []
        self.losses = {}

    def steps(self, batch_size):
        return self.joint.steps(batch_size)

    def plan(self, number, tasks, batch_size, generator):
        if number == 0:
            self.left = [
                [list(batch.indices), batch.seed]
                for plan in self.joint.epoch(tasks, batch_size, generator)
                for batch in plan.batches
            ]
        indices, seed = self.left[number]
        batch = BatchPlan("train", tuple(indices), seed, augment=True)
        chosen = max(tasks, key=lambda task: self.losses.get(task, 9.0))
        return StepPlan((batch,), (Episode((chosen,), support=0),))

    def after_step(self, context):
        self.losses |= context.losses

    def state_dict(self):
        return {"left": self.left, "losses": dict(self.losses)}

    def load_state_dict(self, state):
        self.left, self.losses = state["left"], dict(state["losses"])


class ForgetsItsLosses(ByLoss):
    def state_dict(self):
        return {**super().state_dict(), "losses": {}}


class ForgetsItsOrder(ByLoss):
    def load_state_dict(self, state):
        self.losses = dict(state["losses"])


class CountsPlans(ByLoss):
    """Its state says how often it was asked, and is not restored."""

    asked = 0

    def plan(self, number, tasks, batch_size, generator):
        self.asked += 1
        return super().plan(number, tasks, batch_size, generator)

    def state_dict(self):
        return {**super().state_dict(), "asked": self.asked}


class DrawsInAfterStep(ByLoss):
    def after_step(self, context):
        self.losses |= {task: float(torch.rand(())) for task in context.present}


class NoStep(ByLoss):
    horizon = 0


class ByMetric(ByLoss):
    def after_evaluation(self, metrics):
        self.losses |= {t: values["loss"] for t, values in metrics.items()}

    def plan(self, number, tasks, batch_size, generator):
        weights = torch.tensor([self.losses.get(task, 1.0) for task in tasks])
        torch.multinomial(weights, 1, generator=generator)
        return super().plan(number, tasks, batch_size, generator)


class MakesGroups(Joint):
    """Numbers independent batches by itself."""

    def epoch(self, tasks, batch_size, generator):
        for plan in super().epoch(tasks, batch_size, generator):
            yield StepPlan(plan.batches, tuple(attrs.evolve(e, group=1) for e in plan.episodes))


EPISODE_SAMPLERS = [
    (MakesGroups, "test_episodes_name_batches_of_their_plan", "made by the core"),
    (GlobalShuffle, "test_epochs_follow_the_generator_alone", "global generator"),
    (CountsEpochs, "test_epochs_follow_the_generator_alone", "another epoch"),
    (Hasty, "test_horizon_is_a_number_of_steps", "StepSampler"),
    (NoStep, "test_horizon_is_a_number_of_steps", "0 is not"),
    (CountsEpochs, "test_state_comes_back", "not part of its state"),
    (ForgetsItsLosses, "test_state_comes_back", "not part of its state"),
    (ForgetsItsOrder, "test_state_comes_back", "index out of range"),
    (CountsPlans, "test_state_comes_back", "state differs"),
    (DrawsInAfterStep, "test_state_comes_back", "after_step draws from torch's global"),
    (ByMetric, "test_evaluations_may_lack_values", "probability"),
    (OneStepTooMany, "test_steps_are_as_announced", "an epoch has"),
    (AlwaysTheSame, "test_epochs_differ", "the same"),
    (EveryTask, "test_only_the_tasks_asked_for", "asked for"),
    (QueriesItsSupport, "test_query_samples_are_not_learnt_from", "share train samples"),
    (OutOfRange, "test_indices_are_in_range", "has 23 samples"),
    (PairsOnly, "test_a_last_task_goes_on_learning", "no episode"),
    (OneBatchForAll, "test_batches_are_of_the_size_asked_for", "a batch of 23"),
    (OneSeedForAll, "test_batches_are_changed_at_random_each_in_its_way", "the same seed"),
    (LearnsFromValidation, "test_only_training_samples_are_learnt_from", "not of train"),
    (NamesABatchThatIsNotThere, "test_episodes_name_batches_of_their_plan", "plan of 1"),
    (FirstTaskAlone, "test_every_task_learns", "only has"),
]


@pytest.mark.parametrize(("component", "test", "message"), EPISODE_SAMPLERS)
def test_episode_samplers(component, test, message, held_to, catches):
    catches(held_to(EpisodeSamplerContract, component), test, message)


def test_a_good_sampler_of_steps_passes(held_to, passes):
    passes(held_to(EpisodeSamplerContract, ByLoss))


def test_every_check_catches_something(catch_all):
    catch_all(EpisodeSamplerContract, EPISODE_SAMPLERS)
