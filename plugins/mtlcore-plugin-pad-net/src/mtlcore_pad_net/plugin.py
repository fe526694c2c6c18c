"""What this plugin adds: PAD-Net, the head of its final tasks, and a method on three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, HeadSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Xu, Ouyang, Wang and Sebe, CVPR 2018, https://arxiv.org/abs/1805.04409"
_TASKS = ["segmentation", "depth", "normals", "edges"]
_AUXILIARY = ["normals", "edges"]
# What predicts an auxiliary task of what the backbone made for it.
_POINTWISE = {name: {"name": "pointwise"} for name in _AUXILIARY}


def _on_rooms() -> dict[str, Any]:
    """Return the paper's four tasks on rendered rooms, over a U-Net that learns in minutes."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    return {
        "tasks": _TASKS,
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {
                "name": "pad-net",
                "backbone": unet,
                "auxiliary": _AUXILIARY,
                "distillation": "c",
                "channels": 16,
            },
            "head": {"name": "bottlenecks", "blocks": 2},
            "heads": _POINTWISE,
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _published() -> dict[str, Any]:
    """Return the network and recipe of Vandenhende et al. 2021, with HRNet-W18."""
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
                "name": "pad-net",
                "backbone": hrnet,
                "distillation": "c",
                "channels": 256,
            },
            "head": {"name": "bottlenecks", "blocks": 2},
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
    """Yield PAD-Net over any encoder."""
    yield BackboneSpec(
        name="pad-net",
        target="mtlcore_pad_net.backbone:PADNet",
        summary="A prediction of every task on the way, messages between what they are made of.",
        paper=_PAPER,
    )


@hookimpl
def mtl_heads() -> Iterator[HeadSpec]:
    """Yield the head of final tasks."""
    yield HeadSpec(
        name="bottlenecks",
        target="mtlcore_pad_net.heads:bottlenecks",
        task_kinds=("*",),
        layouts=("map",),
        summary="Residual bottlenecks and a 1x1 convolution on the main map.",
        paper="Vandenhende et al., TPAMI 2021, https://arxiv.org/abs/2004.13379",
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield PAD-Net, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("pad-net", _on_rooms(), "PAD-Net, two of four tasks auxiliary; small, on rooms."),
        (
            "pad-net-nyud",
            _on_nyud(),
            "PAD-Net, two of four tasks auxiliary; HRNet-W18, NYUD.",
        ),
        ("pad-net-pascal", _on_pascal(), "PAD-Net, five tasks; HRNet-W18, PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("backbones/pad-net",)
        )
