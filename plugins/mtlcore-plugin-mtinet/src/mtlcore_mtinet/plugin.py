"""What this plugin adds: MTI-Net, and a method on each of three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Vandenhende, Georgoulis and Van Gool, ECCV 2020, https://arxiv.org/abs/2001.06902"
_TASKS = ["segmentation", "depth", "normals", "edges"]
_AUXILIARY = ["normals", "edges"]
# What predicts an auxiliary task of what the backbone made for it.
_POINTWISE = {name: {"name": "pointwise"} for name in _AUXILIARY}


def _on_rooms() -> dict[str, Any]:
    """Return the paper's tasks on rendered rooms, over a U-Net that learns in minutes."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    return {
        "tasks": _TASKS,
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {
                "name": "mti-net",
                "backbone": unet,
                "auxiliary": _AUXILIARY,
                # Its maps have up to 128 channels, which make messages dear.
                "fpn": 16,
            },
            "head": {"name": "hrnet"},
            "heads": _POINTWISE,
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _published() -> dict[str, Any]:
    """Return the authors' recipe, with HRNet-W18."""
    hrnet = {
        "name": "timm",
        "model": "hrnet_w18_small_v2.ms_in1k",
        "weights": "pretrained",
        # Without what its classifier has before pooling: 18, 36, 72 and 144 channels.
        "options": {"head": ""},
    }
    return {
        "model": {
            "backbone": {
                "name": "mti-net",
                "backbone": hrnet,
            },
            "head": {"name": "hrnet"},
        },
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 8, "epochs": 100},
    }


def _on_nyud() -> dict[str, Any]:
    preset = _published()
    preset["data"] = {
        "name": "nyud-mt",
        "size": [480, 640],
        "augment": {"scales": [1.0, 1.2, 1.5], "flip": True},
    }
    preset["model"]["backbone"]["auxiliary"] = _AUXILIARY
    preset["model"]["heads"] = _POINTWISE
    preset |= nyud_mt()
    return preset


def _on_pascal() -> dict[str, Any]:
    preset = _published()
    preset["data"] = {
        "name": "pascal-context",
        "size": [512, 512],
        "augment": {"flip": True},
        "augmentations": [{"name": "rotate", "degrees": 20.0, "scales": [0.75, 1.25]}],
    }
    preset |= pascal_context()
    return preset


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield MTI-Net over any encoder."""
    yield BackboneSpec(
        name="mti-net",
        target="mtlcore_mtinet.backbone:MTINet",
        summary="Predictions of every task, and messages between tasks, at each of several scales.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MTI-Net, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("mti-net", _on_rooms(), "MTI-Net, two of four tasks auxiliary; small, on rooms."),
        (
            "mti-net-nyud",
            _on_nyud(),
            "MTI-Net, two of four tasks auxiliary; HRNet-W18, NYUD.",
        ),
        ("mti-net-pascal", _on_pascal(), "MTI-Net, five tasks; HRNet-W18, PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("backbones/mti-net",)
        )
