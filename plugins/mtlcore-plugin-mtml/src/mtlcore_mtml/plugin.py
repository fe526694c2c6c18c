"""What this plugin adds: an episode sampler, an optimizer, a head, and MTML on three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import EpisodeSamplerSpec, HeadSpec, MethodSpec, OptimizerSpec, hookimpl

_PAPER = "Upadhyay et al., MTML, 2022, https://arxiv.org/abs/2210.06989"
_TASKS = ["segmentation", "depth", "normals", "edges"]
_REQUIRES = ("episode-samplers/task-powerset", "optimizers/mtml")


@hookimpl
def mtl_episode_samplers() -> Iterator[EpisodeSamplerSpec]:
    """Yield the sampler of subsets of tasks."""
    yield EpisodeSamplerSpec(
        name="task-powerset",
        target="mtlcore_mtml.powerset:TaskPowerset",
        summary="Episodes of all subsets of two or more tasks, or of some drawn for each step.",
        paper=_PAPER,
    )


@hookimpl
def mtl_optimizers() -> Iterator[OptimizerSpec]:
    """Yield the bilevel optimizer."""
    yield OptimizerSpec(
        name="mtml",
        target="mtlcore_mtml.bilevel:MTML",
        summary="Learns to learn any subset of the tasks: SGD inside, AdamW outside.",
        paper=_PAPER,
    )


@hookimpl
def mtl_heads() -> Iterator[HeadSpec]:
    """Yield the published head for edges."""
    yield HeadSpec(
        name="deeplab-repeated",
        target="mtlcore_mtml.heads:RepeatedDeepLab",
        task_kinds=("segmentation", "depth", "inverse-depth", "normals", "edges", "saliency"),
        layouts=("map",),
        summary="DeepLab's head with several outputs per channel, of which the mean counts.",
        paper=_PAPER,
    )


def _on_rooms() -> dict[str, Any]:
    """Small enough for a CPU."""
    return {
        "tasks": _TASKS,
        "data": {"name": "rooms"},
        "model": {
            "backbone": {"name": "unet", "width": 0.125, "decoder": "shared"},
            "head": {"name": "conv"},
        },
        "balancer": {"name": "uncertainty", "form": "mtml"},
        "episodes": {"name": "task-powerset", "episodes": 2},
        "optimizer": {
            "name": "mtml",
            "lr": 5e-3,
            "inner_lr": 3e-3,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        "training": {"batch_size": 8, "steps": 600, "threads": 1},
    }


def _published(data: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's network, losses and optimizer; what is ours is said in the README."""
    deeplab = {"name": "deeplab", "rates": [12, 24, 36], "channels": 256, "dropout": 0.5}
    return {
        "tasks": _TASKS,
        "data": {
            **data,
            "size": [256, 256],
            "ignore_classes": {"segmentation": ["background"]},
        },
        "model": {
            "backbone": {"name": "resnet", "depth": 50, "output_stride": 8, "width": 1.0},
            "head": deeplab,
            "heads": {"edges": {**deeplab, "name": "deeplab-repeated", "outputs": 3}},
        },
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            # Never negative, so that exp(-s) L + s has a minimum in s.
            "depth": {"name": "hu-depth", "a": 0.5, "from_zero": True},
            "normals": {"name": "cosine"},
            "edges": {"name": "huber", "delta": 0.5},
        },
        "balancer": {"name": "uncertainty", "form": "mtml"},
        "episodes": {"name": "task-powerset"},
        "optimizer": {
            "name": "mtml",
            "lr": 1e-4,
            "eps": 1e-7,
            "weight_decay": 0.01,
            "inner_lr": 3e-4,
        },
        "metrics": {
            "normals": [{"name": "normals"}, {"name": "normals-cosine"}],
            "edges": [{"name": "edges-mae"}, {"name": "edges"}],
        },
        "training": {"batch_size": 64, "epochs": 500, "task_patience": 35, "patience": 50},
    }


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MTML, small on rendered rooms and as published on NYUv2 and Taskonomy."""
    yield MethodSpec(
        name="mtml",
        preset=_on_rooms(),
        summary="Multi-task meta-learning; small, on rendered rooms.",
        paper=_PAPER,
        requires=_REQUIRES,
    )
    yield MethodSpec(
        name="mtml-nyuv2",
        preset=_published({"name": "nyud-mt", "classes": 41}),
        summary="Multi-task meta-learning; the published network, on NYUv2 with 41 classes.",
        paper=_PAPER,
        requires=_REQUIRES,
    )
    yield MethodSpec(
        name="mtml-taskonomy",
        preset=_published({"name": "taskonomy"}),
        summary="Multi-task meta-learning; the published network, on Taskonomy.",
        paper=_PAPER,
        requires=_REQUIRES,
    )
