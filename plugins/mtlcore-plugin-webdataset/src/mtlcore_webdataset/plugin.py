"""What this plugin adds: a dataset of shards."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import DatasetSpec, hookimpl


@hookimpl
def mtl_datasets() -> Iterator[DatasetSpec]:
    """Yield the dataset."""
    yield DatasetSpec(
        name="webdataset",
        target="mtlcore_webdataset.dataset:WebDataset",
        summary="Photographs and labels in tar shards, as the library webdataset writes them.",
        paper="Aizman, Maltby and Breuel, High Performance I/O For Large Scale Deep Learning, "
        "IEEE Big Data 2019, arXiv:2001.01858",
    )
