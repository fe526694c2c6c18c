"""Backbones that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

from dataclasses import replace

import attrs
import pytest
import torch
from torch import nn

from mtlcore.features import EarlyPrediction, Features
from mtlcore.models import Backbone, ExchangePoint, ResidualBlock, Transition
from mtlcore.testing import BackboneContract, TinyBackbone


class LiesAboutChannels(TinyBackbone):
    out_channels = (6, 4)


class LiesAboutItsMultiple(TinyBackbone):
    input_multiple = 1


class EditsItsInput(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs.mul_(2), tasks)


class TellsNumbers(TinyBackbone):
    def facts(self):
        return {"blocks": 3}


class BeginsWithWhatItHasNot(TinyBackbone):
    first_weights = ("weights",)


class ClaimsTheTrunk(TinyBackbone):
    def task_parameters(self, task):
        trunk = self.trunk.parameters() if task == "depth" else ()
        return [*super().task_parameters(task), *trunk]


class HasASpare(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.spare = nn.Linear(2, 2)


class LooksAtTheBatch(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs - inputs.mean(0, keepdim=True), tasks)


class RunsEveryBranch(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs, list(self.keys))


class ForgetsItsPhase(TinyBackbone):
    started = False
    named = ("trunk.0.weight",)

    def at_progress(self, fraction):
        if self.started or fraction < 0.5:
            return None
        self.started = True
        nn.init.normal_(self.trunk[0].weight)
        return Transition(reset=self.named)


class NamesNothing(ForgetsItsPhase):
    named = ()


class CutsTooEarly(TinyBackbone):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        return replace(features, cut=(features.per_task[tasks[0]][0],))


class LiesAboutStrides(TinyBackbone):
    strides = (2, 1)


class MixesTasks(TinyBackbone):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        mean = sum(maps for (maps,) in features.per_task.values()) / len(tasks)
        return replace(features, per_task={t: (m + mean,) for t, (m,) in features.per_task.items()})


class SharesABranch(TinyBackbone):
    def task_parameters(self, task):
        return super().task_parameters("depth")


class ClaimsAStranger(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.strangers = [nn.Parameter(torch.zeros(2))]

    def task_parameters(self, task):
        return [*super().task_parameters(task), *(self.strangers if task == "depth" else ())]


class ClaimsAnothersBranch(TinyBackbone):
    def task_parameters(self, task):
        first, second, *_ = self.keys
        swapped = {first: second, second: first}
        return super().task_parameters(swapped.get(task, task))


class NormalisesImages(TinyBackbone):
    def forward(self, inputs, tasks):
        return super().forward(inputs / inputs.std(), tasks)


class CountsImages(TinyBackbone):
    images = 0

    def forward(self, inputs, tasks):
        self.images += len(inputs)
        return super().forward(inputs, tasks)

    def get_extra_state(self):
        return {"images": self.images}

    def set_extra_state(self, state):
        self.images = state["images"]


class LearnsInEvaluation(TinyBackbone):
    def forward(self, inputs, tasks):
        self.trunk[1].train()
        return super().forward(inputs, tasks)


class KeepsBranchesByName(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.keys = {task.name: task.name for task in tasks}
        self.branches = nn.ModuleDict({task.name: self.branches[task.key] for task in tasks})


class WarmsUp(TinyBackbone):
    steps = 0

    def forward(self, inputs, tasks):
        self.steps += self.training
        return super().forward(inputs * self.steps, tasks)


class LastIsPrivate(TinyBackbone):
    def last_shared_parameters(self):
        return self.branches["task_depth"].parameters()


class LastIsUnused(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.spare = nn.Linear(2, 2)

    def last_shared_parameters(self):
        return self.spare.parameters()


class ChangesTwice(TinyBackbone):
    def at_progress(self, fraction):
        if fraction < 0.5:
            return None
        nn.init.normal_(self.trunk[0].weight)
        return Transition(reset=("trunk.0.weight",))


class GroupsTheTrunkTwice(TinyBackbone):
    def parameter_groups(self):
        return [{"params": self.trunk.parameters(), "lr": rate} for rate in (0.1, 0.2)]


class GroupsInAnAttribute(TinyBackbone):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.parameter_groups = [{"params": [*self.trunk.parameters()], "lr": 0.1}]


class ListsALayerTwice(TinyBackbone):
    def layer_groups(self):
        return [list(self.trunk.parameters())] * 2


class ListsForeignLayers(TinyBackbone):
    def layer_groups(self):
        return [list(self.trunk.parameters()), list(nn.Linear(2, 2).parameters())]


class LeavesOutBranches(TinyBackbone):
    def trunk_blocks(self):
        return [list(self.trunk.parameters())]


class RecordsOthersTasks(TinyBackbone):
    def current_values(self):
        return {"gate": {"weather": 0.5}}


class RecordsTensors(TinyBackbone):
    def current_values(self):
        return {"gate": {task: torch.ones(()) for task in self.keys}}


class NamesNoResidualBlock(TinyBackbone):
    def residual_blocks(self):
        return [ResidualBlock(name="trunk", last="trunk.1", channels=6)]


class PointsBeyondItsMaps(TinyBackbone):
    main_map = 2


class HasAFrozenStem(TinyBackbone):
    """As a good backbone may: no gradient is asked for there."""

    def __init__(self, tasks):
        super().__init__(tasks)
        self.trunk[0].requires_grad_(False)
        self.branches.requires_grad_(False)

    def last_shared_parameters(self):
        return self.trunk[0].parameters()


class ReadsTokens(Backbone):
    """As a good backbone may: words of two languages and a mask, as a dictionary."""

    input_kind = "tokens"
    out_channels = (6,)
    strides = (1,)

    def __init__(self, tasks):
        super().__init__()
        self.words = nn.Embedding(9, 6)

    def forward(self, inputs, tasks):
        mask = inputs["mask"][..., None].float()
        words = self.words(inputs["words"]) * mask
        shared = words.sum(1) / mask.sum(1).clamp(min=1)
        return Features(shared=(shared,), cut=(shared,))


class LooksAtAllTokens(ReadsTokens):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        mean = features.shared[0].mean(0, keepdim=True)
        return replace(features, shared=(features.shared[0] - mean,))


class LiesAboutItsTokens(ReadsTokens):
    out_channels = (5,)


class EditsItsMask(ReadsTokens):
    def forward(self, inputs, tasks):
        inputs["mask"].fill_(True)
        return super().forward(inputs, tasks)


class PredictsEarly(TinyBackbone):
    """Right: a prediction per task of the shared map, and a term."""

    channels = {"segmentation": 4, "depth": 1, "normals": 3}

    def __init__(self, tasks):
        super().__init__(tasks)
        self.early = nn.ModuleDict(
            {task.key: nn.Conv2d(6, self.channels.get(task.name, task.channels), 1)
             for task in tasks}
        )  # fmt: skip

    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        if not self.training:
            return features
        return replace(features, early=self.predictions(features, tasks), terms=self.terms())

    def predictions(self, features, tasks):
        (shared,) = features.shared
        return {
            t: [EarlyPrediction(self.early[self.keys[t]](shared), self.weight())] for t in tasks
        }

    def terms(self):
        return {"size": self.trunk[0].weight.square().mean()}

    def weight(self):
        return 0.5

    def task_parameters(self, task):
        return [*super().task_parameters(task), *self.early[self.keys[task]].parameters()]


class PredictsForAll(PredictsEarly):
    def predictions(self, features, tasks):
        return super().predictions(features, list(self.keys))


class PredictsOtherChannels(PredictsEarly):
    channels = {"segmentation": 5}


class WeighsByNaN(PredictsEarly):
    def weight(self):
        return float("nan")


class PredictsInEvaluation(PredictsEarly):
    training = property(lambda self: True, lambda self, mode: None)


class GivesAVectorOfTerms(PredictsEarly):
    def terms(self):
        return {"size": self.trunk[0].weight.square().mean((1, 2, 3))}


class SharesItsPredictors(PredictsEarly):
    def task_parameters(self, task):
        extra = self.early["task_normals"].parameters() if task == "depth" else ()
        return [*TinyBackbone.task_parameters(self, task), *extra]


class WarmsUpInSteps(TinyBackbone):
    steps = 0

    def forward(self, inputs, tasks):
        return super().forward(inputs * (1 + self.steps), tasks)

    def after_step(self, context):
        self.steps += 1


class Exchanges(TinyBackbone):
    """Right: maps of the trunk can be exchanged."""

    channels = 6

    def exchange_points(self):
        parameters = (*self.trunk.parameters(),)
        return [ExchangePoint(module=self.trunk, channels=self.channels, parameters=parameters)]


class LiesAboutWhatItExchanges(Exchanges):
    channels = 5


class ForgetsWhatMadeIt(Exchanges):
    def exchange_points(self):
        return [attrs.evolve(point, parameters=()) for point in super().exchange_points()]


class ExchangesForNothing(Exchanges):
    def forward(self, inputs, tasks):
        self.trunk(inputs)
        features = self.trunk[2](self.trunk[1](self.trunk[0](inputs)))
        own = {task: (self.branches[self.keys[task]](features),) for task in tasks}
        return Features(shared=(features,), per_task=own, cut=(features,))


class ExchangesBackwards(Exchanges):
    def exchange_points(self):
        (last,) = super().exchange_points()
        parts = self.trunk[1].parameters()
        return [
            attrs.evolve(last, parameters=(*self.trunk[0].parameters(), *parts)),
            ExchangePoint(module=self.trunk[0], channels=6, parameters=()),
        ]


BACKBONES = [
    (LiesAboutWhatItExchanges, "test_exchange_points_are_where_maps_pass", "5 channels of NCHW"),
    (ForgetsWhatMadeIt, "test_exchange_points_are_where_maps_pass", "trunk.0.weight, which its"),
    (ExchangesForNothing, "test_exchange_points_are_where_maps_pass", "change no feature"),
    (ExchangesBackwards, "test_exchange_points_are_where_maps_pass", "1, 0] were passed"),
    (PointsBeyondItsMaps, "test_maps_are_as_announced", "main_map is 2"),
    (RecordsOthersTasks, "test_what_is_recorded_of_it_are_numbers_of_its_tasks", "{'weather'}"),
    (RecordsTensors, "test_what_is_recorded_of_it_are_numbers_of_its_tasks", "is no number"),
    (NamesNoResidualBlock, "test_residual_blocks_add_a_branch", "6 channels announced"),
    (ListsALayerTwice, "test_layers_are_of_its_own_parameters", "in two layer groups"),
    (ListsForeignLayers, "test_layers_are_of_its_own_parameters", "none of the backbone's"),
    (PredictsForAll, "test_early_predictions_fit_their_tasks", "early predictions of {'"),
    (PredictsOtherChannels, "test_early_predictions_fit_their_tasks", "has 4 channels"),
    (WeighsByNaN, "test_early_predictions_fit_their_tasks", "the weight nan"),
    (PredictsInEvaluation, "test_evaluation_has_nothing_to_train_with", "in evaluation mode"),
    (GivesAVectorOfTerms, "test_terms_are_finite_scalars", "size has shape"),
    (SharesItsPredictors, "test_task_parameters_are_honest", "does not reach its early"),
    (WarmsUpInSteps, "test_state_comes_back", "gives other features"),
    (LiesAboutChannels, "test_maps_are_as_announced", "announced are"),
    (LiesAboutItsMultiple, "test_maps_are_as_announced", "no multiple of stride"),
    (TellsNumbers, "test_what_it_tells_is_text", "blocks"),
    (BeginsWithWhatItHasNot, "test_first_weights_are_settings", "weights is no setting"),
    (EditsItsInput, "test_the_input_stays_as_it_was", "edited in place"),
    (ClaimsTheTrunk, "test_task_parameters_are_honest", "declared as depth's own"),
    (HasASpare, "test_every_parameter_is_reached", "spare.weight"),
    (LeavesOutBranches, "test_each_parameter_is_in_one_block", "branches.* are in no block"),
    (ListsALayerTwice, "test_each_parameter_is_in_one_block", "are in two blocks"),
    (ListsForeignLayers, "test_each_parameter_is_in_one_block", "none of the backbone's"),
    (LooksAtTheBatch, "test_samples_do_not_see_one_another_in_evaluation", "its batch"),
    (RunsEveryBranch, "test_absent_tasks_leave_no_trace", "not asked for changed"),
    (ForgetsItsPhase, "test_state_comes_back", "part of its state"),
    (NamesNothing, "test_transitions_say_what_they_change", "were named"),
    (CutsTooEarly, "test_the_cut_is_crossed", "through the cut"),
    (LiesAboutStrides, "test_maps_are_as_announced", "announced are"),
    (MixesTasks, "test_only_the_tasks_asked_for_are_needed", "with the other tasks"),
    (SharesABranch, "test_task_parameters_are_honest", "belongs to two tasks"),
    (ClaimsAStranger, "test_task_parameters_are_honest", "none of the backbone's"),
    (ClaimsAnothersBranch, "test_task_parameters_are_honest", "does not reach its"),
    (NormalisesImages, "test_plain_images_are_finite", "0.0 everywhere"),
    (CountsImages, "test_a_forward_pass_changes_buffers_only", "training changes .*extra_state"),
    (LearnsInEvaluation, "test_a_forward_pass_changes_buffers_only", "evaluation changes"),
    (KeepsBranchesByName, "test_tasks_may_have_any_name", "type"),
    (WarmsUp, "test_state_comes_back", "gives other features"),
    (LastIsPrivate, "test_last_shared_parameters_are_shared", "one task alone"),
    (LastIsUnused, "test_last_shared_parameters_are_shared", "reaches none"),
    (GroupsTheTrunkTwice, "test_its_groups_are_of_its_own_parameters", "in two groups"),
    (GroupsInAnAttribute, "test_its_groups_are_of_its_own_parameters", "is no method"),
    (ChangesTwice, "test_transitions_say_what_they_change", "changes itself twice"),
]


@pytest.mark.parametrize(("component", "test", "message"), BACKBONES)
def test_backbones(component, test, message, held_to, catches):
    catches(held_to(BackboneContract, component), test, message)


class TokensContract(BackboneContract):
    def inputs(self, backbone, batch=2):
        return {
            "words": torch.randint(0, 9, (batch, 7)),
            "mask": torch.rand(batch, 7) < 0.7,
        }


@pytest.mark.parametrize(
    ("component", "test", "message"),
    [
        (LooksAtAllTokens, "test_samples_do_not_see_one_another_in_evaluation", "its batch"),
        (LiesAboutItsTokens, "test_maps_are_as_announced", "announced are"),
        (EditsItsMask, "test_the_input_stays_as_it_was", "edited in place"),
    ],
)
def test_backbones_that_read_no_images(component, test, message, held_to, catches):
    catches(held_to(TokensContract, component), test, message)


def test_a_good_backbone_of_tokens_passes(held_to, passes):
    passes(held_to(TokensContract, ReadsTokens))


def test_what_requires_no_gradient_is_left_alone(held_to, passes):
    passes(held_to(BackboneContract, HasAFrozenStem))


def test_own_parameters_that_no_loss_reaches_can_be_listed(held_to, catches):
    class OwnsASpare(TinyBackbone):
        def __init__(self, tasks):
            super().__init__(tasks)
            self.spare = nn.Linear(2, 2)

        def task_parameters(self, task):
            spare = self.spare.parameters() if task == "depth" else ()
            return [*super().task_parameters(task), *spare]

    test = "test_task_parameters_are_honest"
    catches(held_to(BackboneContract, OwnsASpare), test, "spare.weight")
    getattr(held_to(BackboneContract, OwnsASpare, unreached=("spare",)), test)()


def test_a_good_backbone_with_early_predictions_passes(held_to, passes):
    passes(held_to(BackboneContract, PredictsEarly))


def test_a_backbone_whose_maps_are_exchanged_passes(held_to, passes):
    passes(held_to(BackboneContract, Exchanges))


def test_what_no_loss_reaches_can_be_listed(held_to):
    held_to(BackboneContract, HasASpare, unreached=("spare",)).test_every_parameter_is_reached()


def test_every_check_catches_something(catch_all):
    catch_all(BackboneContract, BACKBONES)
