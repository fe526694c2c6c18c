"""Cross-task losses that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.losses import CrossTaskLoss
from mtlcore.testing import CrossTaskLossContract


class Agree(CrossTaskLoss):
    """Pulls two predictions together where both tasks have labels."""

    def __init__(self, tasks, features):
        super().__init__()

    def needs(self, batch, tasks):
        return [task for task in ("depth", "normals") if task in tasks]

    def forward(self, batch, features, predictions):
        if not {"depth", "normals"} <= set(predictions):
            return {}
        gap = predictions["depth"].mean(1) - predictions["normals"].mean(1)
        both = batch.valid["depth"] & batch.valid["normals"]
        return {"agree": (gap.square() * both).sum() / both.sum().clamp(min=1)}


class NeedsEverything(Agree):
    def needs(self, batch, tasks):
        return ["depth", "normals"]


class NeverDivides(Agree):
    def forward(self, batch, features, predictions):
        both = (batch.valid["depth"] & batch.valid["normals"]).sum()
        return {"agree": predictions["depth"].mean() / both}


class ReadsMissingLabels(Agree):
    def forward(self, batch, features, predictions):
        return {"agree": (predictions["depth"] - batch.targets["depth"]).abs().mean()}


class EditsPredictions(Agree):
    def forward(self, batch, features, predictions):
        predictions["depth"].data.mul_(2)
        return super().forward(batch, features, predictions)


class TakesBothForGranted(Agree):
    def forward(self, batch, features, predictions):
        gap = predictions["depth"].mean(1) - predictions["normals"].mean(1)
        return {"agree": gap.square().mean()}


class NeverApplies(Agree):
    def forward(self, batch, features, predictions):
        return {}


class GivesAMap(Agree):
    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        return {name: term.expand(2) for name, term in terms.items()}


class LearnsNothing(Agree):
    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        return {name: 0 * term.detach() + torch.ones((), requires_grad=True)
                for name, term in terms.items()}  # fmt: skip


class GrowsByItself(Agree):
    steps = 0

    def forward(self, batch, features, predictions):
        self.steps += 1
        terms = super().forward(batch, features, predictions)
        return {name: self.steps * term for name, term in terms.items()}


class AsksForTwoViews(Agree):
    views = 2


class HasASpareWeight(Agree):
    def __init__(self, tasks, features):
        super().__init__(tasks, features)
        self.spare = nn.Parameter(torch.ones(()))


class GroupsWhatItDoesNotHave(Agree):
    def parameter_groups(self):
        return [{"params": [nn.Parameter(torch.ones(()))], "lr": 0.1}]


class GroupsTwice(HasASpareWeight):
    def parameter_groups(self):
        return [{"params": [self.spare], "lr": rate} for rate in (0.1, 0.2)]


class GrowsWithSteps(Agree):
    steps = 0

    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        return {name: (1 + self.steps) * term for name, term in terms.items()}

    def after_step(self, context):
        self.steps += 1


class Imitates(Agree):
    """Right: also pulls the depth towards a teacher's."""

    needs_teachers = ("ema",)

    def forward(self, batch, features, predictions):
        terms = super().forward(batch, features, predictions)
        if terms:
            expected = self.teacher().predict(batch.inputs, ["depth"])["depth"]
            terms["imitate"] = (predictions["depth"] - expected).square().mean()
        return terms

    def teacher(self):
        return self.teachers["ema"]


class AsksNobody(Imitates):
    needs_teachers = ()


class WakesTheTeacher(Imitates):
    def teacher(self):
        self.teachers["ema"]._model.train()
        return self.teachers["ema"]


class MarriesTheTeacher(Imitates):
    def teacher(self):
        self.model = self.teachers["ema"]._model
        return self.teachers["ema"]


CROSS_TASK_LOSSES = [
    (AsksNobody, "test_terms_are_finite_scalars", "ema"),
    (WakesTheTeacher, "test_teachers_are_none_of_its_own", "a teacher changed"),
    (MarriesTheTeacher, "test_teachers_are_none_of_its_own", "are parameters of a teacher"),
    (GrowsWithSteps, "test_state_comes_back", "gives other terms"),
    (NeedsEverything, "test_needs_names_tasks_of_the_step", "of the tasks"),
    (NeverDivides, "test_terms_are_finite_scalars", "not finite"),
    (ReadsMissingLabels, "test_missing_labels_leave_no_trace", "not valid change"),
    (EditsPredictions, "test_inputs_stay_as_they_were", "edited in place"),
    (TakesBothForGranted, "test_runs_with_the_tasks_that_still_learn", "depth"),
    (NeverApplies, "test_applies_to_the_whole_batch", "no term"),
    (GivesAMap, "test_terms_are_finite_scalars", "agree has shape"),
    (LearnsNothing, "test_terms_are_finite_scalars", "nothing learns"),
    (GrowsByItself, "test_state_comes_back", "gives other terms"),
    (AsksForTwoViews, "test_asks_for_the_views_that_it_reads", "asks for 2 views"),
    (HasASpareWeight, "test_everything_of_it_learns", "spare has no gradient"),
    (GroupsWhatItDoesNotHave, "test_its_groups_are_of_its_own_parameters", "of somebody else"),
    (GroupsTwice, "test_its_groups_are_of_its_own_parameters", "in two groups"),
]


@pytest.mark.parametrize(("component", "test", "message"), CROSS_TASK_LOSSES)
def test_cross_task_losses(component, test, message, held_to, catches):
    catches(held_to(CrossTaskLossContract, component), test, message)


@pytest.mark.parametrize("component", [Agree, Imitates])
def test_a_good_cross_task_loss_passes(component, held_to, passes):
    passes(held_to(CrossTaskLossContract, component))


def test_every_check_catches_something(catch_all):
    catch_all(CrossTaskLossContract, CROSS_TASK_LOSSES)
