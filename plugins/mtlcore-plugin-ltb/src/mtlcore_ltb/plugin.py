"""What this plugin adds: learning to branch over any backbone, and methods on two data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl

_PAPER = "Guo, Lee and Ulbricht, ICML 2020, https://arxiv.org/abs/2006.01895"
_TASKS = ["segmentation", "depth", "normals"]


def _on_rooms() -> dict[str, Any]:
    """Return the network of ATI-Net's single tasks on rooms; one run searches, then trains."""
    unet = {"name": "unet", "width": 0.125, "output_stride": 2, "decoder": "shared"}
    return {
        "tasks": _TASKS,
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {"name": "ltb", "backbone": unet, "search": 0.5},
            "head": {"name": "conv"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # The maps are too small for more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyuv2(search: float) -> dict[str, Any]:
    """Return ResNet-50 by the recipe of LibMTL; a run that searches, or one that trains."""
    resnet = {"name": "resnet", "depth": 50, "output_stride": 8, "width": 1.0}
    return {
        "tasks": _TASKS,
        "data": {"name": "nyuv2"},
        "model": {
            "backbone": {
                "name": "ltb",
                "backbone": resnet,
                "search": search,
                "warmup": 0.01,
                "temperature": 10.0,
                "cold": 0.7,
                "rate": 1.0,
            },
            "head": {"name": "deeplab"},
        },
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            "depth": {"name": "l1"},
            "normals": {"name": "cosine"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-5,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        "training": {"batch_size": 8, "epochs": 200},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the stages of which a tree is made."""
    yield BackboneSpec(
        name="ltb",
        target="mtlcore_ltb.backbone:LTB",
        summary="A tree of the stages of any backbone, searched for, then trained from scratch.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield learning to branch on rendered rooms, and its two phases, a run each, on NYUv2."""
    for name, preset, summary in (
        ("ltb", _on_rooms(), "Search and training in one run; small, on rendered rooms."),
        ("ltb-nyuv2", _on_nyuv2(1.0), "The search for a tree; ResNet-50 on NYUv2."),
        (
            "ltb-tree-nyuv2",
            _on_nyuv2(0.0),
            "The tree that initial.run found, from scratch; ResNet-50 on NYUv2.",
        ),
    ):
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=summary,
            paper=_PAPER,
            requires=("backbones/ltb",),
        )
