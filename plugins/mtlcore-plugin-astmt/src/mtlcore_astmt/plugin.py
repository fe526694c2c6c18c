"""What this plugin adds: ASTMT's network and its adversary, and methods on three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, CrossTaskLossSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Maninis, Radosavovic and Kokkinos, CVPR 2019, https://arxiv.org/abs/1904.08918"


def _on_rooms() -> dict[str, Any]:
    """Return a small ResNet that learns from nothing, on rendered rooms."""
    resnet = {"name": "resnet", "depth": 18, "width": 0.25, "output_stride": 16, "pyramid": True}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {"name": "astmt", "encoder": resnet, "channels": 32, "reduction": 16},
            "head": {"name": "pointwise"},
        },
        "cross_task": [{"name": "gradient-adversary", "weight": 0.01, "kernel": 1, "rate": 10.0}],
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # The maps are too small for more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _published(kernel: int, epochs: int) -> dict[str, Any]:
    """Return what both data sets have in common, with the SE-ResNet-50 that timm has weights of."""
    resnet = {
        "name": "timm",
        "model": "seresnet50.ra2_in1k",
        "weights": "pretrained",
        "options": {"output_stride": 16},
    }
    return {
        "model": {
            "backbone": {"name": "astmt", "encoder": resnet, "channels": 64, "reduction": 16},
            "head": {"name": "pointwise"},
        },
        "cross_task": [
            {"name": "gradient-adversary", "weight": 0.01, "kernel": kernel, "rate": 10.0}
        ],
        "optimizer": {
            "name": "sgd",
            "lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 8, "epochs": epochs},
    }


def _data(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "size": [512, 512],
        "augment": {"flip": True},
        "augmentations": [{"name": "rotate", "degrees": 20.0, "scales": [0.75, 1.25]}],
    }


def _on_nyud() -> dict[str, Any]:
    preset = _published(kernel=3, epochs=200)
    preset["data"] = _data("nyud-mt")
    preset |= nyud_mt(positive=0.8)
    return preset


def _on_pascal() -> dict[str, Any]:
    preset = _published(kernel=1, epochs=60)
    preset["data"] = _data("pascal-context")
    preset |= pascal_context()
    return preset


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield ASTMT's network over any residual encoder."""
    yield BackboneSpec(
        name="astmt",
        target="mtlcore_astmt.backbone:ASTMT",
        summary="A pass per task, with attention to channels, adapters and norms of its own.",
        paper=_PAPER,
    )


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield the adversary on gradients, for any backbone."""
    yield CrossTaskLossSpec(
        name="gradient-adversary",
        target="mtlcore_astmt.adversary:GradientAdversary",
        summary="Gradients of tasks come to look alike to a discriminator.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield ASTMT, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("astmt", _on_rooms(), "a small ResNet, on rooms."),
        ("astmt-nyud", _on_nyud(), "SE-ResNet-50, four tasks of NYUD."),
        ("astmt-pascal", _on_pascal(), "SE-ResNet-50, five tasks of PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=f"A pass per task, and gradients that hide whose they are; {summary}",
            paper=_PAPER,
            requires=("backbones/astmt", "losses/gradient-adversary"),
        )
