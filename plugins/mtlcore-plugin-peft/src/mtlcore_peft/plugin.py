"""What this plugin adds: a backbone around any other, which learns through low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BackboneSpec, hookimpl


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbone with adapters."""
    yield BackboneSpec(
        name="lora",
        target="mtlcore_peft.lora:LoRA",
        summary="Any backbone, frozen, with low-rank adapters: one for all tasks or one per task.",
        paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685",
    )
