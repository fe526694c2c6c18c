"""Reading files, augmenting samples and loading batches."""

from mtlcore.loading.augmentations import BatchAugmentation, SampleAugmentation, image_of
from mtlcore.loading.cache import SampleCache, check_shared
from mtlcore.loading.decoding import (
    decode_image,
    decode_label,
    image_tensor,
    is_array,
    stored_turned,
    unit_normals,
)
from mtlcore.loading.files import (
    MissingFile,
    Root,
    cache_folder,
    check_split,
    decode_text,
    marked_encoding,
    open_root,
)
from mtlcore.loading.labels import convert
from mtlcore.loading.loader import Loader, PlanReader, Split, lost_workers_told, stop_at
from mtlcore.loading.regimes import draw_regime
from mtlcore.loading.torchvision import library, torchvision_repaired
from mtlcore.loading.transforms import Augmentation, as_seen_in, resize, resize_label, turn
from mtlcore.loading.weights import HubFile, WeightFile, check_fit, hub_file, read_weight_file

__all__ = [
    "Augmentation",
    "BatchAugmentation",
    "HubFile",
    "Loader",
    "MissingFile",
    "PlanReader",
    "Root",
    "SampleAugmentation",
    "SampleCache",
    "Split",
    "WeightFile",
    "as_seen_in",
    "cache_folder",
    "check_fit",
    "check_shared",
    "check_split",
    "convert",
    "decode_image",
    "decode_label",
    "decode_text",
    "draw_regime",
    "hub_file",
    "image_of",
    "image_tensor",
    "is_array",
    "library",
    "lost_workers_told",
    "marked_encoding",
    "open_root",
    "read_weight_file",
    "resize",
    "resize_label",
    "stop_at",
    "stored_turned",
    "torchvision_repaired",
    "turn",
    "unit_normals",
]
