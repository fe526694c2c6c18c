"""What this plugin adds: cross-stitch and sluice networks, and methods on two data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl

_CROSSSTITCH = "Misra et al., CVPR 2016, https://arxiv.org/abs/1604.03539"
_SLUICE = "Ruder et al., AAAI 2019, https://arxiv.org/abs/1705.08142"

# The network of ATI-Net's single tasks on rooms, so that runs can be compared.
_SMALL = {"name": "unet", "width": 0.125, "output_stride": 2, "decoder": "shared"}
# Per method: the settings of its backbone beside the network of a task, what it is, its paper.
_METHODS: tuple[tuple[str, dict[str, Any], dict[str, Any], str, str], ...] = (
    (
        "cross-stitch",
        # Adam moves every number by about its rate: at 100 times that of the rooms, by a half.
        {"unit_rate": 1.0},
        {"unit_rate": 100.0},
        "A network per task and weighted sums of their maps after each stage",
        _CROSSSTITCH,
    ),
    (
        "sluice",
        # Filters of two dozen layers are added up, where the paper has those of one to three.
        {"orthogonality": 1e-3},
        {"orthogonality": 1e-3},
        "A network per task, subspaces of whose maps are mixed, and skips from all stages",
        _SLUICE,
    ),
)


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield both networks."""
    yield BackboneSpec(
        name="cross-stitch",
        target="mtlcore_crossstitch.crossstitch:CrossStitch",
        summary="A network per task, over any backbone, and weighted sums of their maps.",
        paper=_CROSSSTITCH,
    )
    yield BackboneSpec(
        name="sluice",
        target="mtlcore_crossstitch.sluice:Sluice",
        summary="Cross-stitch over subspaces of the maps, and a mixture of all stages at the end.",
        paper=_SLUICE,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield each network on rendered rooms, and on NYUv2 at full width."""
    for name, on_rooms, on_nyuv2, summary, paper in _METHODS:
        small = {"name": name, "backbone": _SMALL, **on_rooms}
        large = {"name": name, "backbone": {"name": "segnet", "width": 1.0}, **on_nyuv2}
        yield MethodSpec(
            name=name,
            preset=_on_rooms(small),
            summary=f"{summary}; small, on rendered rooms.",
            paper=paper,
            requires=(f"backbones/{name}",),
        )
        yield MethodSpec(
            name=f"{name}-nyuv2",
            preset=_on_nyuv2(large),
            summary=f"{summary}; on SegNet at full width, on NYUv2.",
            paper=paper,
            requires=(f"backbones/{name}",),
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
    """Return the recipe by which MTAN's paper compares networks, a cross-stitch one too."""
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
