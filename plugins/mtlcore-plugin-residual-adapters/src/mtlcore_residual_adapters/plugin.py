"""What this plugin adds: residual adapters over any encoder, and methods on two data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt

_SERIES = "Rebuffi, Bilen and Vedaldi, NIPS 2017, https://arxiv.org/abs/1705.08045"
_PARALLEL = "Rebuffi, Bilen and Vedaldi, CVPR 2018, https://arxiv.org/abs/1803.10082"


def _on_rooms() -> dict[str, Any]:
    """Return adapters in a small U-Net that learns from nothing, on rendered rooms."""
    unet = {"name": "unet", "width": 0.125, "output_stride": 2, "decoder": "shared"}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            # Nothing here was trained before, so that what tasks share learns as well.
            "backbone": {
                "name": "residual-adapters",
                "encoder": unet,
                "placement": "parallel",
                "frozen": False,
            },
            "head": {"name": "conv"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # The maps are too small for more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyud(placement: str) -> dict[str, Any]:
    """Return adapters in a pretrained ResNet-50, by the recipe of Vandenhende et al. 2021."""
    resnet = {
        "name": "timm",
        "model": "resnet50.tv_in1k",
        "weights": "pretrained",
        "out_indices": [-1],
        "options": {"output_stride": 8},
    }
    return {
        **nyud_mt(),
        "data": {
            "name": "nyud-mt",
            "size": [480, 640],
            "augment": {"scales": [1.0, 1.2, 1.5], "flip": True},
        },
        "model": {
            "backbone": {
                "name": "residual-adapters",
                "encoder": resnet,
                "placement": placement,
                "frozen": True,
            },
            "head": {"name": "deeplab"},
        },
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 8, "epochs": 100},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbone with adapters."""
    yield BackboneSpec(
        name="residual-adapters",
        target="mtlcore_residual_adapters.backbone:ResidualAdapters",
        summary="A shared encoder, with 1x1 adapters and batch norms of each task's own.",
        paper=_PARALLEL,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield adapters in parallel on rendered rooms, and both kinds on NYUD."""
    for name, preset, summary, paper in (
        ("residual-adapters", _on_rooms(), "adapters in parallel; small, on rooms.", _PARALLEL),
        (
            "residual-adapters-nyud",
            _on_nyud("parallel"),
            "adapters in parallel; a frozen ResNet-50, NYUD.",
            _PARALLEL,
        ),
        (
            "series-adapters-nyud",
            _on_nyud("series"),
            "adapters in series; a frozen ResNet-50, NYUD.",
            _SERIES,
        ),
    ):
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=f"A pass per task through a shared encoder with {summary}",
            paper=paper,
            requires=("backbones/residual-adapters",),
        )
