"""The backbones keep what mtlcore asks, on vectors, on maps, and over what changes in a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import EarlyPrediction, Features
from mtlcore.models import Backbone, StepContext, Transition
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import BackboneContract
from mtlcore_mmoe.backbones import CGC, PLE, MMoE
from mtlcore_mmoe.gates import Gate

WIDTH = 5


class Lively(Backbone):
    """A map and a vector beside it, a phase, an early prediction, a term, a count of steps."""

    out_channels, strides, input_multiple, main_map = (4, 3), (4, 0), 4, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 4, stride=4)
        self.vector = nn.Linear(4, 3)
        self.keys = {task.name: task.key for task in tasks}
        self.early = nn.ModuleDict({t.key: nn.Conv2d(4, t.channels, 1) for t in tasks})
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        x = self.layer(inputs).tanh()
        shared = (x, self.vector(x.mean((2, 3))))
        if not self.training:
            return Features(shared=shared)
        early = {task: [EarlyPrediction(self.early[self.keys[task]](x), 0.5)] for task in tasks}
        return Features(shared=shared, early=early, terms={"size": x.abs().mean()})

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        return self.early[self.keys[task]].parameters()

    def layer_groups(self) -> list[list[Parameter]]:
        return [[*self.layer.parameters()]]

    def facts(self) -> dict[str, str]:
        return {"weights": "none"}

    def at_progress(self, fraction: float) -> Transition | None:
        if fraction < 0.3 or self.begun:
            return None
        self.begun.fill_(True)
        nn.init.normal_(self.layer.weight)
        return Transition(reset=("layer.weight",))

    def after_step(self, context: StepContext) -> None:
        self.steps += 1


class OfVectors(BackboneContract):
    def inputs(self, backbone: Backbone, batch: int = 2) -> Tensor:
        return torch.rand(batch, WIDTH)


class TestMMoEOverAPyramid(BackboneContract):
    """Gates that select some of three experts, which no two digits name."""

    def make(self, tasks: Sequence[Task]) -> Backbone:
        encoder = partial(UNet, width=1 / 64, decoder="none", output_stride=8)
        gate = Gate(name="dselect-k", entropy=0.1)
        return MMoE(tasks, experts=3, gate=gate, encoder=encoder)


class TestCGCOverWhatChanges(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return CGC(tasks, shared=1, own=2, tower=(6,), encoder=Lively)


class TestPLEOnVectors(OfVectors):
    """Three levels, so that gates of single tasks, too, are shared at the first one."""

    def make(self, tasks: Sequence[Task]) -> Backbone:
        gate = Gate(name="dselect-k", static=True)
        return PLE(tasks, inputs=WIDTH, levels=3, shared=2, own=1, hidden=(6, 4), gate=gate)


def test_what_the_encoder_tells_and_does_goes_on() -> None:
    tasks = [Task(name="depth", kind="depth", channels=1)]
    backbone = CGC(tasks, encoder=Lively)
    inside = backbone.wrapped()[0]
    assert backbone.facts() == {"weights": "none"}
    assert [len(layer) for layer in backbone.layer_groups()] == [2]
    assert (backbone.strides, backbone.main_map, backbone.input_kind) == ((4, 0), 0, "image")
    assert backbone.out_channels == (4, 3)
    features = backbone(torch.rand(2, 3, 8, 8), ["depth"])
    assert set(features.terms) == {"size"}
    assert len(features.early["depth"]) == 1
    assert features.cut == ()  # early predictions do not cross it
    assert backbone.at_progress(0.5) == Transition(reset=("encoder.layer.weight",))
    assert bool(inside.begun)
