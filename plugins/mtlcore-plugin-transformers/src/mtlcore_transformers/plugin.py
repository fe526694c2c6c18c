"""What this plugin adds: backbones of images and of texts, and a dataset of texts."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BackboneSpec, DatasetSpec, hookimpl

_PAPER = "Wolf et al., Transformers: State-of-the-Art Natural Language Processing, EMNLP 2020, https://aclanthology.org/2020.emnlp-demos.6"


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbones that wrap encoders of transformers."""
    yield BackboneSpec(
        name="transformers",
        target="mtlcore_transformers.images:TransformersBackbone",
        summary="Any image encoder of transformers that gives maps, with its weights or without.",
        paper=_PAPER,
    )
    yield BackboneSpec(
        name="transformers-text",
        target="mtlcore_transformers.text:TransformersText",
        summary="Any text encoder of transformers: its tokens, and their average.",
        paper=_PAPER,
    )


@hookimpl
def mtl_datasets() -> Iterator[DatasetSpec]:
    """Yield the dataset of texts."""
    yield DatasetSpec(
        name="texts",
        target="mtlcore_transformers.texts:Texts",
        summary="A table with a column of texts, in tokens, and tasks per text or word.",
    )
