"""What this plugin adds: IRA, small on rendered rooms and as published on three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Yim and Kim, 2020, https://arxiv.org/abs/2008.02043"
_REQUIRES = ("balancers/ira",)
# Data, its depth task, epochs of warm-up, alpha: larger for easy data, the paper says, and not how
# large.
_PUBLISHED: tuple[tuple[dict[str, Any], str, int, float], ...] = (
    ({"name": "nyuv2"}, "depth", 20, 2e-4),
    ({"name": "cityscapes", "depth": "metres"}, "depth", 12, 1e-3),
    ({"name": "vkitti"}, "inverse_depth", 20, 2e-4),
)


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer IRA."""
    yield BalancerSpec(
        name="ira",
        target="mtlcore_ira.balancer:IRA",
        summary="Classes of an auxiliary task weigh by what they do to the main task.",
        paper=_PAPER,
    )


def _on_rooms() -> dict[str, Any]:
    """Depth first, served by segmentation; small enough for a CPU.

    Weights move faster than in the paper, whose rate needs thousands of updates.
    """
    return {
        "tasks": ["segmentation", "depth"],
        "data": {"name": "rooms"},
        "model": {
            "backbone": {"name": "unet", "width": 0.125, "decoder": "per-task"},
            "head": {"name": "conv"},
        },
        "losses": {"segmentation": {"name": "cross-entropy"}, "depth": {"name": "l1"}},
        "balancer": {"name": "ira", "main": "depth", "alpha": 3e-3, "warmup": 0.25},
        "optimizer": {
            "name": "adam",
            "lr": 5e-3,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.3},
        },
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _as_published(data: dict[str, Any], depth: str, warmup: int, alpha: float) -> dict[str, Any]:
    """Return the paper's setting: batches of 16, a rate of .01 and then .001.

    It does not name the optimizer (here: momentum), U-Net's width (1) and the number of epochs
    (40). Errors of depth by class region are those of its table 1.
    """
    epochs = 40
    return {
        "tasks": ["segmentation", depth],
        "data": data,
        "model": {
            "backbone": {"name": "unet", "width": 1.0, "decoder": "per-task"},
            "head": {"name": "conv"},
        },
        "losses": {"segmentation": {"name": "cross-entropy"}, depth: {"name": "l1"}},
        "metrics": {depth: {"name": "depth", "regions": "segmentation"}},
        "balancer": {
            "name": "ira",
            "main": depth,
            "alpha": alpha,
            "warmup": warmup / epochs,
        },
        "optimizer": {
            "name": "sgd",
            "lr": 1e-2,
            "momentum": 0.9,
            "schedule": {"name": "step", "at": [20 / epochs], "gamma": 0.1},
        },
        "training": {"batch_size": 16, "epochs": epochs},
    }


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield IRA with depth as the main task; `balancer.main` names another one."""
    yield MethodSpec(
        name="ira",
        preset=_on_rooms(),
        summary="Depth first, segmentation class by class; small, on rendered rooms.",
        paper=_PAPER,
        requires=_REQUIRES,
    )
    for data, depth, warmup, alpha in _PUBLISHED:
        dataset = data["name"]
        yield MethodSpec(
            name=f"ira-{dataset}",
            preset=_as_published(data, depth, warmup, alpha),
            summary=f"Depth first, segmentation class by class; as published, on {dataset}.",
            paper=_PAPER,
            requires=_REQUIRES,
        )
