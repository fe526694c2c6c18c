"""What this plugin adds: InvPT, and a method on each of three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Ye and Xu, ECCV 2022, https://arxiv.org/abs/2203.07997"


def _on_rooms() -> dict[str, Any]:
    """Return a small network over a U-Net that learns in minutes, on rendered rooms."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {"name": "invpt", "backbone": unet, "preliminary": 32, "channels": 64},
            "head": {"name": "pointwise"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 3e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _published(data: str, size: list[int]) -> dict[str, Any]:
    """Return the authors' recipe, with ViT-L."""
    vit = {
        "name": "timm",
        "model": "vit_large_patch16_384.augreg_in21k_ft_in1k",
        "weights": "pretrained",
        "pyramid": "none",
        # Those that are read of the published 6, 12, 18 and 24, which count from 1.
        "out_indices": [5, 11, 23],
        "drop_path": 0.15,
    }
    return {
        "data": {
            "name": data,
            "size": size,
            "augment": {"flip": True},
            "augmentations": [
                {"name": "rotate", "degrees": 0.0, "scales": [0.5, 2.0]},
                {"name": "photometric"},
            ],
        },
        "model": {
            "backbone": {"name": "invpt", "backbone": vit, "preliminary": 512, "channels": 576},
            "head": {"name": "pointwise"},
        },
        "optimizer": {
            "name": "adam",
            "lr": 2e-5,
            "weight_decay": 1e-6,
            "schedule": {"name": "poly", "power": 0.9},
        },
        # Two images in each of three processes.
        "training": {"batch_size": 6, "steps": 40_000},
    }


def _on_nyud() -> dict[str, Any]:
    preset = _published("nyud-mt", [448, 576])
    preset |= nyud_mt(normals=_NORMALS)
    return preset


def _on_pascal() -> dict[str, Any]:
    preset = _published("pascal-context", [512, 512])
    preset |= pascal_context(normals=_NORMALS, saliency="saliency-maxf")
    return preset


# The authors' 10 is for the sum over x, y and z; the loss here is their mean.
_NORMALS = 30.0


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield InvPT over any encoder."""
    yield BackboneSpec(
        name="invpt",
        target="mtlcore_invpt.backbone:InvPT",
        summary="Preliminary predictions, and attention between all tasks as the resolution grows.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield InvPT, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("invpt", _on_rooms(), "InvPT, three tasks; small, on rooms."),
        ("invpt-nyud", _on_nyud(), "InvPT, four tasks; ViT-L, NYUD."),
        ("invpt-pascal", _on_pascal(), "InvPT, five tasks; ViT-L, PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("backbones/invpt",)
        )
