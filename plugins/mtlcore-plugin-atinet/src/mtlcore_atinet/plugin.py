"""What this plugin adds: five backbones, and for each a method on each of two data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl

_ATINET = "Sinodinos and Armanfard, ICPR 2022, https://arxiv.org/abs/2201.10649"
_MTAN = "Liu, Johns and Davison, CVPR 2019, https://arxiv.org/abs/1803.10704"
_PADNET = "Xu, Ouyang, Wang and Sebe, CVPR 2018, https://arxiv.org/abs/1805.04409"
_SEGNET = "Badrinarayanan, Kendall and Cipolla, TPAMI 2017, https://arxiv.org/abs/1511.00561"

_BACKBONES = (
    BackboneSpec(
        name="atinet",
        target="mtlcore_atinet.atinet:ATINet",
        summary="MTAN that distils between tasks on the latent map in the second half of a run.",
        paper=_ATINET,
    ),
    BackboneSpec(
        name="mtan",
        target="mtlcore_atinet.mtan:MTAN",
        summary="A SegNet for all tasks and an attention branch for each.",
        paper=_MTAN,
    ),
    BackboneSpec(
        name="padnet",
        target="mtlcore_atinet.padnet:PADNet",
        summary="A SegNet decoder per task and gated messages between the decoded maps.",
        paper=_PADNET,
    ),
    BackboneSpec(
        name="segnet-deep",
        target="mtlcore_atinet.split:DeepSegNet",
        summary="A SegNet with twice the convolutions, shared by all tasks.",
        paper=_MTAN,
    ),
    BackboneSpec(
        name="segnet-per-task",
        target="mtlcore_atinet.single:SegNetPerTask",
        summary="A SegNet for each task, trained side by side.",
        paper=_SEGNET,
    ),
)

# Per method: its backbone, its balancer, what it is, and where it comes from.
_EQUAL = {"name": "equal"}
_DWA = {"name": "dwa", "temperature": 2.0}
_METHODS: tuple[tuple[str, str, dict[str, Any], str, str], ...] = (
    ("atinet", "atinet", _DWA, "ATI-Net", _ATINET),
    ("mtan", "mtan", _DWA, "MTAN, ATI-Net's starting point", _MTAN),
    ("padnet", "padnet", _DWA, "PAD-Net on SegNet", _PADNET),
    ("split", "segnet-deep", _DWA, "One deep SegNet, split at the heads", _ATINET),
    ("one-task", "segnet-per-task", _EQUAL, "Single-task baselines in one run", _ATINET),
)


def _on_rooms(backbone: str, balancer: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's recipe on rendered rooms, small enough for a CPU."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms"},
        "model": {"backbone": {"name": backbone, "width": 0.0625}, "head": {"name": "conv"}},
        "balancer": balancer,
        "optimizer": {
            "name": "adam",
            "lr": 5e-3,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _on_nyuv2(backbone: str, balancer: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's recipe on its data: 200 epochs, no augmentation, the last ten averaged."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "nyuv2"},
        "model": {"backbone": {"name": backbone, "width": 1.0}, "head": {"name": "conv"}},
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            "depth": {"name": "l1"},
            "normals": {"name": "cosine"},
        },
        "balancer": balancer,
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        # The last ten epochs are averaged, so that each of them must be evaluated.
        "training": {"batch_size": 2, "epochs": 200, "evaluate_every": 1, "average_last": 10},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield ATI-Net and the networks that its paper compares it with."""
    yield from _BACKBONES


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield each network, trained as in ATI-Net's experiments, on rendered rooms and on NYUv2."""
    for name, backbone, balancer, summary, paper in _METHODS:
        requires = (f"backbones/{backbone}",)
        yield MethodSpec(
            name=name,
            preset=_on_rooms(backbone, balancer),
            summary=f"{summary}; small, on rendered rooms.",
            paper=paper,
            requires=requires,
        )
        yield MethodSpec(
            name=f"{name}-nyuv2",
            preset=_on_nyuv2(backbone, balancer),
            summary=f"{summary}; as published, on NYUv2.",
            paper=paper,
            requires=requires,
        )
