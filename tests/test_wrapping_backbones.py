"""A backbone around others: what those do in the course of a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.models import Backbone, Transition, WrappingBackbone, joined, shared_maps
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyBackbone


class Phased(TinyBackbone):
    """Draws its trunk anew at a point of the run, and remembers that it has."""

    def __init__(self, tasks: Sequence[Task], begins: float) -> None:
        super().__init__(tasks)
        self.begins = begins
        self.register_buffer("begun", torch.tensor(False))
        self.heard: list[object] = []

    def at_progress(self, fraction: float) -> Transition | None:
        if self.begun or fraction < self.begins:
            return None
        self.begun.fill_(True)
        nn.init.normal_(self.trunk[0].weight)
        return Transition(reset=("trunk.0.weight",), reset_heads=self.begins > 0.5)

    def layer_groups(self):
        return [list(self.trunk.parameters())]

    def facts(self):
        return {"licence": "MIT", f"begins at {self.begins}": "yes"}

    def after_step(self, context) -> None:
        self.heard.append(context)


class Two(WrappingBackbone):
    """Two networks, whose maps are added."""

    out_channels, strides, input_multiple = (6, 5), (2, 2), 2

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"early": Phased(tasks, 0.3), "late": Phased(tasks, 0.6)})

    def wrapped(self) -> Sequence[Backbone]:
        return [self.parts["early"], self.parts["late"]]

    def forward(self, inputs, tasks) -> Features:
        one, other = (part(inputs, tasks) for part in self.wrapped())
        return Features(
            shared=(one.shared[0] + other.shared[0],),
            per_task={t: (one.per_task[t][0] + other.per_task[t][0],) for t in tasks},
        )

    def task_parameters(self, task):
        return [p for part in self.wrapped() for p in part.task_parameters(task)]


class TestTwo(BackboneContract):
    def make(self, tasks):
        return Two(tasks)


def test_each_enters_its_phase_under_its_own_path() -> None:
    backbone = Two(TINY_TASKS)
    assert backbone.at_progress(0.2) is None
    assert backbone.at_progress(0.3) == Transition(reset=("parts.early.trunk.0.weight",))
    assert backbone.at_progress(0.5) is None
    late = Transition(reset=("parts.late.trunk.0.weight",), reset_heads=True)
    assert backbone.at_progress(0.7) == late


def test_phases_of_one_step_are_joined() -> None:
    change = Two(TINY_TASKS).at_progress(1.0)
    names = ("parts.early.trunk.0.weight", "parts.late.trunk.0.weight")
    assert change == Transition(reset=names, reset_heads=True)
    assert joined(None, None) is None
    assert joined(change, None) is joined(None, change) is change
    balancer = joined(change, Transition(reset_balancer=True))
    assert balancer == Transition(reset=names, reset_heads=True, reset_balancer=True)


def test_layers_of_one_depth_learn_alike() -> None:
    backbone = Two(TINY_TASKS)
    early, late = (part.trunk.parameters() for part in backbone.wrapped())
    (group,) = backbone.layer_groups()
    assert {id(p) for p in group} == {id(p) for p in [*early, *late]}


def test_all_hear_of_steps_and_tell_their_facts() -> None:
    backbone, context = Two(TINY_TASKS), object()
    backbone.after_step(context)
    assert [part.heard for part in backbone.wrapped()] == [[context], [context]]
    assert set(backbone.facts()) == {"licence", "begins at 0.3", "begins at 0.6"}


def test_maps_of_single_tasks_are_refused_where_shared_ones_are_read() -> None:
    maps = (torch.rand(1, 6, 2, 2),)
    inner = TinyBackbone(TINY_TASKS)
    assert shared_maps("model.backbone.inner", inner, Features(shared=maps)) is maps
    features = Features(shared=maps, per_task={"depth": maps})
    with pytest.raises(
        UsageError,
        match=r"^model\.backbone\.inner: TinyBackbone gives tasks .*inner\.decoder",
    ):
        shared_maps("model.backbone.inner", inner, features)


class Around(WrappingBackbone):
    """A network around one, which is asked before each step and changes nothing then."""

    out_channels, strides, input_multiple = (6, 5), (2, 2), 2

    def __init__(self, inside: Backbone) -> None:
        super().__init__()
        self.inside = inside

    def wrapped(self) -> Sequence[Backbone]:
        return (self.inside,)

    def forward(self, inputs, tasks) -> Features:
        return self.inside(inputs, tasks)


def test_it_has_phases_where_it_or_one_inside_has() -> None:
    plain, phased = TinyBackbone(TINY_TASKS), Phased(TINY_TASKS, 0.5)
    assert not plain.has_phases and phased.has_phases
    assert not Around(plain).has_phases and Around(phased).has_phases
    assert Around(Around(phased)).has_phases and not Around(Around(plain)).has_phases
    own = type("Own", (Around,), {"at_progress": lambda self, fraction: None})
    assert own(plain).has_phases
