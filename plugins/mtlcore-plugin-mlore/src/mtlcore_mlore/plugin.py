"""What this plugin adds: MLoRE, and a method on each of three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Yang et al., CVPR 2024, https://arxiv.org/abs/2403.17749"
# The authors' 10 is for the sum over x, y and z; the loss here is their mean.
_NORMALS = 30.0


def _on_rooms() -> dict[str, Any]:
    """Return a small network over a U-Net that learns in minutes, on rendered rooms."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {
                "name": "mlore",
                "backbone": unet,
                "channels": 32,
                "ranks": [2, 4, 6, 8],
                "chosen": 2,
                "task_rank": 4,
                "grid": [8, 8],
            },
            "head": {"name": "pointwise"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 3e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _published(data: str, size: list[int], lr: float, mlore: dict[str, Any]) -> dict[str, Any]:
    """Return the authors' recipe."""
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
        "model": {"backbone": {"name": "mlore", **mlore}, "head": {"name": "pointwise"}},
        "optimizer": {
            "name": "adam",
            "lr": lr,
            "weight_decay": 1e-6,
            "clip": 10.0,
            "schedule": {"name": "poly", "power": 0.9},
        },
        # Two images in each of two processes.
        "training": {"batch_size": 4, "steps": 40_000},
    }


def _vit(model: str, blocks: list[int]) -> dict[str, Any]:
    return {
        "name": "timm",
        "model": model,
        "weights": "pretrained",
        "pyramid": "none",
        "out_indices": blocks,
        "drop_path": 0.15,
    }


def _on_nyud() -> dict[str, Any]:
    mlore = {
        "backbone": _vit("vit_large_patch16_384.augreg_in21k_ft_in1k", [5, 11, 17, 23]),
        "channels": 768,
        "ranks": list(range(16, 241, 16)),
        "chosen": 9,
        "task_rank": 16,
        "renormalise": True,
        "load_balancing": 5e-4,
        "grid": [28, 36],
    }
    preset = _published("nyud-mt", [448, 576], 1e-5, mlore)
    preset |= nyud_mt(normals=_NORMALS, positive=0.88)
    return preset


def _on_pascal() -> dict[str, Any]:
    mlore = {
        "backbone": _vit("vit_base_patch16_384.augreg_in21k_ft_in1k", [2, 5, 8, 11]),
        "channels": 640,
        "ranks": list(range(16, 129, 8)),
        "chosen": 9,
        "task_rank": 64,
        "renormalise": False,
        "load_balancing": 1e-4,
        "grid": [32, 32],
    }
    preset = _published("pascal-context", [512, 512], 2e-5, mlore)
    preset |= pascal_context(normals=_NORMALS, saliency="saliency-maxf")
    return preset


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield MLoRE over any encoder."""
    yield BackboneSpec(
        name="mlore",
        target="mtlcore_mlore.backbone:MLoRE",
        summary="Tasks pick among low-rank experts that all share, at every level of an encoder.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MLoRE, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("mlore", _on_rooms(), "MLoRE, three tasks; small, on rooms."),
        ("mlore-nyud", _on_nyud(), "MLoRE, four tasks; ViT-L, NYUD."),
        ("mlore-pascal", _on_pascal(), "MLoRE, five tasks; ViT-B, PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("backbones/mlore",)
        )
