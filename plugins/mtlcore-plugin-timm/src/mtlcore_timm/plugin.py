"""What this plugin adds: a backbone that is any encoder of timm, and a method for photographs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl


def _photographs() -> dict[str, Any]:
    """Return the recipe, each choice of which docs/methods/photographs.md holds against others."""
    return {
        "data": {
            "name": "folder",
            # In metres, half of a run goes by until the mean depth is reached.
            "standardise": ["depth", "inverse-depth"],
            "augment": {"scales": [1.0, 1.2], "flip": True},
            "augmentations": [{"name": "photometric"}],
        },
        "model": {
            "backbone": {
                "name": "timm",
                "model": "tf_efficientnet_lite0",
                "weights": "pretrained",
                # Statistics of a batch of eight are noise beside those of the weights.
                "freeze_norm": True,
            },
            # Its map has stride 2, whatever the encoder: edges are lost at 4.
            "neck": {"name": "dpt", "channels": 64},
        },
        # Otherwise classes and edges, which the encoder knows best, keep normals behind. At the
        # features it costs little more than a plain sum.
        "balancer": {"name": "unit-norm", "scope": "features"},
        "optimizer": {
            "name": "adamw",
            # The neck has no norm: at three times this rate its first steps are leaps.
            "lr": 1e-3,
            "schedule": {"name": "cosine", "warmup": 0.05},
        },
        # Few photographs are seen often, many of them fewer times: whichever bound comes first.
        "training": {"batch_size": 8, "epochs": 100, "steps": 20_000},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbone that wraps timm's encoders."""
    yield BackboneSpec(
        name="timm",
        target="mtlcore_timm.backbone:TimmBackbone",
        summary="Any image encoder of timm, with or without its pretrained weights.",
        paper="Wightman, PyTorch Image Models, 2019, https://github.com/huggingface/pytorch-image-models",
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the recipe for a folder of photographs."""
    yield MethodSpec(
        name="photographs",
        preset=_photographs(),
        summary="A pretrained encoder tuned on a folder of photographs with any labels.",
    )
