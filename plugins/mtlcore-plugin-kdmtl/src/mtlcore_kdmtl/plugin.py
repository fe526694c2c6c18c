"""What this plugin adds: KD-MTL, and the methods that train its network and its teachers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import CrossTaskLossSpec, MethodSpec, hookimpl

_PAPER = "Li and Bilen, ECCV Workshops 2020, https://arxiv.org/abs/2007.06889"


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield KD-MTL."""
    yield CrossTaskLossSpec(
        name="kdmtl",
        target="mtlcore_kdmtl.adapters:KDMTL",
        summary="Adapted features come near those of each task's own, frozen network.",
        paper=_PAPER,
    )


def _on_rooms() -> dict[str, Any]:
    """Return a network that learns in minutes on a CPU."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {"name": "unet", "width": 0.125, "output_stride": 2},
            "head": {"name": "conv"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyuv2() -> dict[str, Any]:
    """Return the recipe of the authors' code, which is that of MTAN without augmentation."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "nyuv2"},
        "model": {"backbone": {"name": "segnet", "width": 1.0}, "head": {"name": "conv"}},
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
        "training": {"batch_size": 2, "epochs": 200, "evaluate_every": 1},
    }


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield KD-MTL and its teachers, small on rendered rooms and as released on NYUv2."""
    rooms = {"name": "kdmtl"}
    nyuv2 = {
        "name": "kdmtl",
        "weights": {"segmentation": 1.0, "depth": 1.0, "normals": 2.0},
        "lr": 0.1,
        "weight_decay": 5e-4,
        "schedule": {"name": "constant"},
    }
    for suffix, preset, loss, where in (
        ("", _on_rooms(), rooms, "small, on rendered rooms"),
        ("-nyuv2", _on_nyuv2(), nyuv2, "as released, on NYUv2"),
    ):
        yield MethodSpec(
            name=f"kdmtl{suffix}",
            preset={**preset, "cross_task": [loss]},
            summary=f"KD-MTL, taught by a network per task; {where}.",
            paper=_PAPER,
            requires=("losses/kdmtl",),
        )
        yield MethodSpec(
            name=f"kdmtl-teacher{suffix}",
            preset=preset,
            summary=f"The network of a task that teaches under KD-MTL; {where}.",
            paper=_PAPER,
        )
