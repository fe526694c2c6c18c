"""What this plugin adds: a dataset that reads those of the library datasets."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import DatasetSpec, hookimpl


@hookimpl
def mtl_datasets() -> Iterator[DatasetSpec]:
    """Yield the dataset."""
    yield DatasetSpec(
        name="hf",
        target="mtlcore_hf.dataset:HuggingFace",
        summary="Any dataset of Hugging Face's library, of the hub or of local files.",
        paper="Lhoest et al., Datasets: A Community Library for Natural Language Processing, "
        "EMNLP 2021, https://aclanthology.org/2021.emnlp-demo.21",
    )
