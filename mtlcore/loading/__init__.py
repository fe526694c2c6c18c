"""Reading files, augmenting samples and loading batches."""

from mtlcore.loading.augmentations import BatchAugmentation, SampleAugmentation, image_of
from mtlcore.loading.files import (
    MissingFile,
    Root,
    check_split,
    decode_image,
    decode_label,
    image_tensor,
    open_root,
    unit_normals,
)
from mtlcore.loading.labels import convert
from mtlcore.loading.loader import Loader, PlanReader, Split, lost_workers_told, stop_at
from mtlcore.loading.regimes import draw_regime
from mtlcore.loading.transforms import Augmentation, as_seen_in, turn
from mtlcore.loading.weights import WeightFile, read_weight_file

__all__ = [
    "Augmentation",
    "BatchAugmentation",
    "Loader",
    "MissingFile",
    "PlanReader",
    "Root",
    "SampleAugmentation",
    "Split",
    "WeightFile",
    "as_seen_in",
    "check_split",
    "convert",
    "decode_image",
    "decode_label",
    "draw_regime",
    "image_of",
    "image_tensor",
    "lost_workers_told",
    "open_root",
    "read_weight_file",
    "stop_at",
    "turn",
    "unit_normals",
]
