"""What this plugin adds: NDDR-CNN, and methods with and without its shortcut on two data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl

_PAPER = "Gao et al., CVPR 2019, https://arxiv.org/abs/1801.08297"

# The network of ATI-Net's single tasks on rooms, so that runs can be compared. Adam moves every
# number by about its rate: at 100 times that of the rooms, by a half.
_ON_ROOMS = {
    "name": "nddr",
    "backbone": {"name": "unet", "width": 0.125, "output_stride": 2, "decoder": "shared"},
    "layer_rate": 1.0,
}
# SegNet's encoder is VGG-16; as published, maps are fused after its five levels.
_ON_NYUV2 = {
    "name": "nddr",
    "backbone": {"name": "segnet", "width": 1.0},
    "exchange_at": [0, 1, 2, 3, 4],
    "layer_rate": 100.0,
}


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the networks whose maps are fused."""
    yield BackboneSpec(
        name="nddr",
        target="mtlcore_nddr.nddr:NDDR",
        summary="A network per task, over any backbone, fused by 1x1 convolutions per stage.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield NDDR-CNN on rendered rooms and on NYUv2, each with and without its shortcut."""
    for name, shortcut, also in (
        ("nddr", False, ""),
        ("nddr-shortcut", True, ", and a shortcut from all stages"),
    ):
        summary = f"A network per task, fused by 1x1 convolutions after each stage{also}"
        yield MethodSpec(
            name=name,
            preset=_on_rooms({**_ON_ROOMS, "shortcut": shortcut}),
            summary=f"{summary}; small, on rendered rooms.",
            paper=_PAPER,
            requires=("backbones/nddr",),
        )
        yield MethodSpec(
            name=f"{name}-nyuv2",
            preset=_on_nyuv2({**_ON_NYUV2, "shortcut": shortcut}),
            summary=f"{summary}; on SegNet at full width, on NYUv2.",
            paper=_PAPER,
            requires=("backbones/nddr",),
        )


def _on_rooms(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return what ATI-Net's plugin trains its networks by on rendered rooms, for comparison."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {"backbone": backbone, "head": {"name": "conv"}},
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # The maps are too small for more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyuv2(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe by which MTAN's paper compares networks."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "nyuv2"},
        "model": {"backbone": backbone, "head": {"name": "conv"}},
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            "depth": {"name": "l1"},
            "normals": {"name": "cosine"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        # The last ten epochs are averaged, so that each of them must be evaluated.
        "training": {"batch_size": 2, "epochs": 200, "evaluate_every": 1, "average_last": 10},
    }
