"""Networks side by side over encoders of transformers: where their maps are exchanged, and how."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from mtlcore.errors import UsageError
from mtlcore.models import ExchangingBackbone
from mtlcore.testing import TINY_TASKS
from mtlcore_transformers.images import TransformersBackbone

NAMES = [task.name for task in TINY_TASKS]

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
}


class Half(ExchangingBackbone):
    """Each task goes on with a part of its own map, and of the mean of all."""

    def __init__(self, tasks, backbone, own=0.5) -> None:
        super().__init__(tasks, backbone, None)
        self.own = own

    def exchange(self, number, maps, wanted):
        mean = sum(maps.values()) / len(maps)
        return {task: self.own * maps[task] + (1 - self.own) * mean for task in wanted}

    def exchange_parameters(self, number, task):
        return ()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("settings", "layout", "number"),
    [
        ({"model": "resnet", "config": SMALL["resnet"]}, "NCHW", 4),
        ({"model": "swin", "config": SMALL["swin"], "out_indices": (0,)}, "NLC", 1),
        ({"model": "dinov2", "config": SMALL["dinov2"], "channels": 8}, "NLC", 4),
    ],
)
def test_maps_are_exchanged_after_every_stage(
    settings: dict[str, Any], layout: str, number: int
) -> None:
    """With nothing of the others, networks are bit for bit what they are apart."""
    network = Half(TINY_TASKS, partial(TransformersBackbone, **settings), own=1.0).eval()
    assert [point.layout for point in network.points] == [layout] * number
    inputs = torch.rand(2, 3, 2 * network.input_multiple, 3 * network.input_multiple)
    with torch.no_grad():
        together = network(inputs, NAMES)
        alone = [network.networks[t.key](inputs, [t.name]).of(t.name) for t in TINY_TASKS]
        for task, maps in zip(NAMES, alone, strict=True):
            assert all(map(torch.equal, together.of(task), maps))
        network.own = 0.0
        mixed = network(inputs, NAMES)
    # All go on with one map: where the last stage makes what heads read, all read the same.
    first, second = (mixed.of(task)[0] for task in NAMES[:2])
    assert torch.equal(first, second) == (network.networks[TINY_TASKS[0].key].pyramid is None)
    assert not torch.equal(first, alone[0][0])


def test_what_is_made_after_the_last_exchange_is_a_tasks_own() -> None:
    settings = {"model": "dinov2", "config": SMALL["dinov2"], "channels": 8}
    network = Half(TINY_TASKS, partial(TransformersBackbone, **settings))
    own = {id(p) for p in network.task_parameters("depth")}
    pyramid = network.networks[TINY_TASKS[1].key].pyramid.parameters()
    assert own >= {id(p) for p in pyramid}
    shape = (2, 3, 2 * network.input_multiple, 3 * network.input_multiple)
    found = network(torch.rand(shape), NAMES).of("depth")
    other = [p for p in network.networks[TINY_TASKS[0].key].parameters() if p.requires_grad]
    loss = torch.stack([x.square().mean() for x in found]).sum()
    reached = torch.autograd.grad(loss, other, allow_unused=True)
    apart = {id(p) for p in network.task_parameters(NAMES[0])}
    assert not any(g is not None and id(p) in apart for p, g in zip(other, reached, strict=True))


def test_maps_that_are_computed_again_cannot_be_exchanged() -> None:
    settings = {"model": "swin", "config": SMALL["swin"], "gradient_checkpointing": True}
    with pytest.raises(UsageError, match="gradient_checkpointing: networks that exchange"):
        Half(TINY_TASKS, partial(TransformersBackbone, **settings))
