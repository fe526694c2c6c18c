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
        summary="A network for all tasks and an attention branch for each; SegNet, or any other.",
        paper=_MTAN,
    ),
    BackboneSpec(
        name="padnet",
        target="mtlcore_atinet.padnet:PADNet",
        summary="A decoder per task and gated messages between the decoded maps.",
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
        summary="A network for each task, trained side by side; SegNet, or any other.",
        paper=_SEGNET,
    ),
)

# SegNet, which has only the places of maxima to decode by, finds no furniture in minutes; a U-Net,
# whose decoder reads the encoder's maps, does. Its finest map is left out: attention there costs
# nearly half of a step.
_UNET = {"name": "unet", "width": 0.125, "output_stride": 2}
_MAPS = {**_UNET, "decoder": "none"}
_NETWORK = {**_UNET, "decoder": "shared"}
# As on SegNet, the network without attention has more parameters than those with it.
_WIDE = {**_NETWORK, "width": 0.25}

_EQUAL = {"name": "equal"}
_DWA = {"name": "dwa", "temperature": 2.0}
# Per method: its backbone on rooms and on NYUv2, its balancer, what it is, and where it comes from.
_METHODS: tuple[tuple[str, dict[str, Any], str, dict[str, Any], str, str], ...] = (
    # What starts anew where tasks begin to exchange is learnt twice: early, for there is no time.
    (
        "atinet",
        {"name": "atinet", "encoder": _MAPS, "distil_from": 0.2},
        "atinet",
        _DWA,
        "ATI-Net",
        _ATINET,
    ),
    (
        "mtan",
        {"name": "mtan", "encoder": _MAPS},
        "mtan",
        _DWA,
        "MTAN, ATI-Net's starting point",
        _MTAN,
    ),
    (
        "padnet",
        {"name": "padnet", "encoder": _MAPS},
        "padnet",
        _DWA,
        "PAD-Net as ATI-Net's baseline",
        _PADNET,
    ),
    ("split", _WIDE, "segnet-deep", _DWA, "One larger network, split at the heads", _ATINET),
    (
        "one-task",
        {"name": "segnet-per-task", "encoder": _NETWORK},
        "segnet-per-task",
        _EQUAL,
        "Single-task baselines in one run",
        _ATINET,
    ),
)


def _on_rooms(backbone: dict[str, Any], balancer: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's comparison on rendered rooms, on a trunk that learns in minutes on a CPU.

    The rate falls along a cosine, where the paper halves it once: there is no time for a second
    half at half the rate. Half of the images are mirrored.
    """
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {"backbone": backbone, "head": {"name": "conv"}},
        "balancer": balancer,
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
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
    for name, on_rooms, published, balancer, summary, paper in _METHODS:
        yield MethodSpec(
            name=name,
            preset=_on_rooms(on_rooms, balancer),
            summary=f"{summary}; small, on rendered rooms.",
            paper=paper,
            requires=(f"backbones/{on_rooms['name']}",),
        )
        yield MethodSpec(
            name=f"{name}-nyuv2",
            preset=_on_nyuv2(published, balancer),
            summary=f"{summary}; on SegNet, as published, on NYUv2.",
            paper=paper,
            requires=(f"backbones/{published}",),
        )
