"""Samples and batches: what labels may be, and which of them are there."""

from mtlcore.data.samples import (
    Batch,
    DataError,
    Dataset,
    Predictor,
    Sample,
    collate,
    complete,
    empty_batch,
    place_size,
    safe_target,
)
from mtlcore.data.targets import TargetUnits, outside_kind, values_of_kind

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Predictor",
    "Sample",
    "TargetUnits",
    "collate",
    "complete",
    "empty_batch",
    "outside_kind",
    "place_size",
    "safe_target",
    "values_of_kind",
]
