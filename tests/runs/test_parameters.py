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


def test_networks_that_take_turns_count_as_much_as_apart(plugins: Plugins) -> None:
    """Each runs in a thread of its own, of which a counter in this one knew nothing."""
    small = ["data.size=32x64", "model.backbone.backbone.width=0.125"]
    counted = count_method_flops(plugins, "cross-stitch", small)
    learner = build_learner(resolve(plugins, ["cross-stitch"], [set_layer(small)]))
    found: list[int] = []

    def seen(layer: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        x = given[0] if isinstance(layer, torch.nn.ConvTranspose2d) else output
        found.append(2 * layer.weight.numel() * (x.numel() // x.shape[1]))

    for layer in learner.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            layer.register_forward_hook(seen)
    with torch.no_grad():
        learner.eval().model(torch.zeros(1, 3, 32, 64), list(learner.model.tasks))
    assert counted["flops"] == sum(found)


def test_the_network_of_the_last_phase_is_counted(plugins: Plugins) -> None:
    """ATI-Net is MTAN until the middle of its run."""
    mtan, atinet, from_the_first = (
        count_method_flops(plugins, method, ["data.size=32x64", *more])["flops"]
        for method, more in (
            ("mtan-nyuv2", []),
            ("atinet-nyuv2", []),
            ("atinet-nyuv2", ["model.backbone.distil_from=0"]),
        )
    )
    assert atinet == from_the_first
    assert atinet > mtan  # type: ignore[operator]


def test_what_cannot_be_counted_says_why(plugins: Plugins) -> None:
    told = count_method_flops(plugins, "atinet-nyuv2", ["data.root=nowhere"])
    assert told == {"not counted": "the size of images is not known; set data.size"}
    told = count_method_flops(plugins, "mmoe-census", ["data.root=nowhere"])
    assert told == {"not counted": "its inputs are no images"}
