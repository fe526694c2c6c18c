"""The perceptron for vectors, alone and with heads that read a vector."""

from __future__ import annotations

import pytest
import torch

from mtlcore.errors import MtlError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel, count_parameters
from mtlcore.plugins import settings_of
from mtlcore.standard.heads import LinearHead
from mtlcore.standard.mlp import MLP
from mtlcore.tasks import Task
from mtlcore.testing import BackboneContract

TASKS = (
    Task(name="kind", kind="classification", channels=3),
    Task(name="tags", kind="multilabel", channels=4),
    Task(name="price", kind="regression", channels=1),
)


class TestMLP(BackboneContract):
    tasks = TASKS

    def make(self, tasks):
        return MLP(tasks, inputs=5, hidden=(7, 6))

    def test_maps_are_as_announced(self):
        """Vectors have no size that strides could divide."""
        for task in TASKS:
            (vector,) = self._new()(self._inputs(self._new()), [task.name]).of(task.name)
            assert vector.shape == (2, 6)

    def _inputs(self, backbone, batch=2, size=None):
        return torch.rand(batch, 5)


def test_layers():
    network = MLP(TASKS, inputs=5, hidden=(7, 6))
    assert count_parameters(network.parameters()) == 5 * 7 + 7 + 7 * 6 + 6
    assert (network.out_channels, network.strides) == ((6,), (1,))
    first, second = network.layers[0], network.layers[2]
    x = torch.randn(4, 5)
    expected = (second(first(x).clamp_min(0))).clamp_min(0)
    assert torch.equal(network(x, []).shared[0], expected)


def test_a_whole_model():
    backbone = MLP(TASKS, inputs=5)
    info = FeatureInfo(backbone.out_channels, backbone.strides)
    model = MultiTaskModel(TASKS, backbone, {t.name: LinearHead(t, info) for t in TASKS})
    predictions = model(torch.randn(4, 5), [task.name for task in TASKS])
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        "kind": (4, 3),
        "tags": (4, 4),
        "price": (4, 1),
    }


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 1), (4, 3, 8, 8)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(MtlError, match=r"backbone.inputs is 5, but a sample has shape \["):
        MLP(TASKS, inputs=5)(torch.zeros(shape), [])


@pytest.mark.parametrize("settings", [{"inputs": 0}, {"inputs": 5, "hidden": ()},
                                      {"inputs": 5, "hidden": (3, -1)}])  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="positive"):
        MLP(TASKS, **settings)


def test_settings_are_explained():
    assert [s.name for s in settings_of(MLP) if s.meaning] == ["inputs", "hidden"]
