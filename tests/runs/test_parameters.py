"""What is told of a method's network before anything is trained."""

from __future__ import annotations

import pytest
import torch

from mtlcore.config import resolve, set_layer
from mtlcore.engine import build_learner, count_flops
from mtlcore.plugins import Plugins
from mtlcore.runs import count_method_flops

_SMALL = ["data.size=32x64", "model.backbone.width=0.125"]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.from_environment()


def test_operations_are_those_of_the_network_itself(plugins: Plugins) -> None:
    counted = count_method_flops(plugins, "split", _SMALL)
    learner = build_learner(resolve(plugins, ["split"], [set_layer(_SMALL)]))
    assert counted == {
        "size": [32, 64],
        "flops": count_flops(learner, torch.zeros(1, 3, 32, 64)),
    }


def test_twice_the_pixels_are_twice_the_operations(plugins: Plugins) -> None:
    one, two = (
        count_method_flops(plugins, "split", [*_SMALL, f"data.size={size}"])
        for size in ("32x64", "64x64")
    )
    assert two["flops"] == 2 * one["flops"]  # type: ignore[operator]


def test_what_cannot_be_counted_says_why(plugins: Plugins) -> None:
    told = count_method_flops(plugins, "atinet-nyuv2", ["data.root=nowhere"])
    assert told == {"not counted": "the size of images is not known; set data.size"}
    told = count_method_flops(plugins, "mmoe-census", ["data.root=nowhere"])
    assert told == {"not counted": "its inputs are no images"}
