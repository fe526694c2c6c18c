"""What this plugin adds: one backbone, whose setting `model` names any encoder of timm."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BackboneSpec, hookimpl


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbone that wraps timm's encoders."""
    yield BackboneSpec(
        name="timm",
        target="mtlcore_timm.backbone:TimmBackbone",
        summary="Any image encoder of timm, with or without its pretrained weights.",
        paper="Wightman, PyTorch Image Models, 2019, https://github.com/huggingface/pytorch-image-models",
    )
